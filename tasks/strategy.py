"""How a ``gpu-infer`` worker runs its messages: on the engine's loop, with no thread for each.

Celery's own way (pool thread, tracer, two hand-overs) costs more than 1 ms of CPU a request. A task
whose ``Strategy`` is :func:`on_the_loop` has a coroutine for a body; Celery still counts it
against ``-c``, lists it in ``inspect active``, refuses it when it is revoked or has expired, and
sends its events.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo  # type: ignore[import-untyped]
from celery import Celery, Task
from celery.worker.request import Request
from celery.worker.state import requests, task_reserved

log = logging.getLogger(__name__)

#: Events that wait for the consumer's own thread, which sends them after each round. Were there
#: more, Celery would send them from whatever thread made the last, and the engine's must not wait.
_EVENTS_WAITING = 100_000


class Taken(Request):
    """A message that is gone from its queue already: there is nothing to acknowledge (``tasks.worker``)."""

    def acknowledge(self) -> None:
        self.acknowledged = True


def on_the_loop(task: Task, app: Celery, consumer: Any, **_: Any) -> Callable[..., None]:
    """Celery's ``Task.Strategy``: return what takes each message of ``task``."""
    host: Any = app.host
    eventer = consumer.event_dispatcher
    if eventer is not None:
        eventer.buffer_limit = _EVENTS_WAITING

    def take(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **_: Any) -> None:
        request = Taken(
            message,
            on_ack=ack,
            on_reject=reject,
            app=app,
            hostname=consumer.hostname,
            eventer=eventer,
            task=task,
            connection_errors=consumer.connection_errors,
            body=message.body,
            headers=message.headers,
        )
        if request.revoked():
            return
        if request.id in requests:
            # A front door that lost Redis' answer has sent it again.
            log.warning("The request is running here already", extra={"task_id": request.id})
            return
        request.send_event(
            "task-received",
            name=request.name,
            args=request.argsrepr,
            kwargs=request.kwargsrepr,
            root_id=request.root_id,
            parent_id=request.parent_id,
            retries=0,
            eta=None,
            expires=request.expires and request.expires.isoformat(),
        )
        task_reserved(request)
        for callback in callbacks or ():
            callback(request)
        host.spawn(_run(request))

    return take


async def _run(request: Request) -> None:
    started = time.monotonic()
    request.on_accepted(os.getpid(), started)
    try:
        await request.task.run(*request.args, **request.kwargs)
    except Exception:
        log.exception("The task failed", extra={"task_id": request.id})
        request.on_failure(ExceptionInfo(), return_ok=True)
    else:
        request.on_success((False, None, time.monotonic() - started))
