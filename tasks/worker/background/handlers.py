"""What background jobs do, by kind. A handler may be run twice: it must come to the same end."""

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from store import ending
from store.files.files import FileStore
from store.files.uploads import UploadStore
from store.redis.client import connect
from store.sql.adapters import AdapterStore
from store.sql.background_jobs import BackgroundJobStore
from store.sql.batches import BatchStore
from store.sql.tables import now
from store.sql.usage import UsageStore
from tasks.broker.names import BATCHES
from tasks.worker.background import batch_process
from tasks.worker.background.context import HandlerContext

log = logging.getLogger(__name__)

#: How long an ended background job can be looked up. Seconds.
_KEEP_ENDED_SECONDS = 86_400.0
#: How long a batch's folder is left alone. Seconds.
_KEEP_LEFT_SECONDS = 3600.0
#: How long after its deadline a request is left to those who follow it. Seconds.
_FORGOTTEN_SECONDS = 60.0


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
    expired += BatchStore(context.sessions).purge_folders(settings.files_root, _KEEP_LEFT_SECONDS)
    forgotten = BackgroundJobStore(context.sessions).delete_ended(_KEEP_ENDED_SECONDS)
    folded = UsageStore(context.sessions).fold(now() - timedelta(days=settings.usage_record_days))
    return f"{len(purged)} adapters, {expired} files, {forgotten} jobs, {folded} records of usage"


def end_forgotten(context: HandlerContext, payload: dict[str, Any]) -> str:
    """End requests that nobody ends any more: their worker is gone, and so is their client."""
    settings = context.settings
    with connect(settings.redis_url) as client:
        return f"{ending.end_forgotten(client, settings.stream_ttl, _FORGOTTEN_SECONDS)} requests"


Handler = Callable[[HandlerContext, dict[str, Any]], str]

HANDLERS: dict[str, Handler] = {"expire": expire, "end-forgotten": end_forgotten, BATCHES: batch_process.run}
#: Kind -> how often it is due. Seconds.
PERIODIC = {"expire": 60.0, "end-forgotten": 120.0}
