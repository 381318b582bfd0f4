"""What background jobs do, by kind. A handler may be run twice: it must come to the same end."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

from settings import Settings
from store.files.files import FileStore
from store.files.uploads import UploadStore
from store.sql.adapters import AdapterStore
from store.sql.background_jobs import BackgroundJobStore

log = logging.getLogger(__name__)

#: How long an ended background job can be looked up. Seconds.
_KEEP_ENDED_SECONDS = 86_400.0


@dataclass(frozen=True)
class HandlerContext:
    """What a handler works with."""

    settings: Settings
    sessions: sessionmaker[Session]


Handler = Callable[[HandlerContext, dict[str, Any]], str]


def expire(context: HandlerContext, payload: dict[str, Any]) -> str:
    """Remove what nobody can ask for any more: folders of deleted adapters, expired files, ended background jobs."""
    settings = context.settings
    # Until then a request that began on the adapter may still run, or be resumed.
    adapters = AdapterStore(context.sessions, settings.adapters_root)
    purged = adapters.purge_deleted(settings.request_timeout + settings.stream_ttl)
    for reference in purged:
        log.info("The folder of a deleted adapter is removed", extra={"adapter": reference})
    files = FileStore(context.sessions, settings.files_root)
    expired = files.purge() + UploadStore(context.sessions, files).expire()
    forgotten = BackgroundJobStore(context.sessions).delete_ended(_KEEP_ENDED_SECONDS)
    return f"{len(purged)} adapters, {expired} files, {forgotten} jobs"


HANDLERS: dict[str, Handler] = {"expire": expire}
#: Kind -> how often it is due. Seconds.
PERIODIC = {"expire": 60.0}
