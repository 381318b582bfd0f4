"""What background jobs do, by kind. A handler may be run twice: it must come to the same end."""

import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

from settings import ROOT, Settings
from store.files.files import FileStore
from store.files.uploads import UploadStore
from store.sql.adapters import AdapterStore
from store.sql.background_jobs import BackgroundJobStore
from store.sql.batches import BatchStore
from tasks.broker.names import BATCHES

log = logging.getLogger(__name__)

#: How long an ended background job can be looked up. Seconds.
_KEEP_ENDED_SECONDS = 86_400.0
#: How long a batch's folder is left alone. Seconds.
_KEEP_LEFT_SECONDS = 3600.0
#: How often a child process is looked at. Seconds.
_POLL_SECONDS = 0.2
#: A runner of batches that is silent for so long is stuck. Seconds.
_STUCK_SECONDS = 60.0


@dataclass(frozen=True)
class HandlerContext:
    """What a handler works with."""

    settings: Settings
    sessions: sessionmaker[Session]
    #: Set when the job was taken away.
    lost: threading.Event = field(default_factory=threading.Event)
    #: Set when the worker was told to stop.
    stopping: threading.Event = field(default_factory=threading.Event)


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
    expired += BatchStore(context.sessions).remove_left(settings.files_root, _KEEP_LEFT_SECONDS)
    forgotten = BackgroundJobStore(context.sessions).delete_ended(_KEEP_ENDED_SECONDS)
    return f"{len(purged)} adapters, {expired} files, {forgotten} jobs"


def run_batches(context: HandlerContext, payload: dict[str, Any]) -> str:
    """Run all batches that are open, in a process of their own: they need what front doors do with a request."""
    process = subprocess.Popen([sys.executable, "-m", "webapp.openai.batches"], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    heard = time.monotonic()
    try:
        with process.stdout:
            # Somebody else runs them, or will: this worker was told to stop.
            while process.poll() is None and not context.lost.is_set() and not context.stopping.is_set():
                ready, _, _ = select.select([process.stdout], [], [], _POLL_SECONDS)
                if ready and os.read(process.stdout.fileno(), 4096):
                    heard = time.monotonic()
                elif time.monotonic() - heard > _STUCK_SECONDS:
                    raise RuntimeError(f"the runner of batches has said nothing for {_STUCK_SECONDS:.0f} seconds")
                elif ready:
                    # It is about to end.
                    time.sleep(_POLL_SECONDS)
    finally:
        stopped = process.poll() is None
        if stopped:
            process.kill()
        status = process.wait()
    if stopped:
        return "left to another worker"
    if status:
        raise RuntimeError(f"the runner of batches ended with status {status}")
    return "no batch is open"


HANDLERS: dict[str, Handler] = {"expire": expire, BATCHES: run_batches}
#: Kind -> how often it is due. Seconds.
PERIODIC = {"expire": 60.0}
