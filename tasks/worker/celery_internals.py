"""The one door to what Celery 5.7 does not document. Nothing else in the project relies on such a part.

Each use says why. ``tests/unit/tasks/test_celery_internals.py`` checks what is relied on against the
installed Celery, so that an upgrade fails there, with words, and not in a running worker.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo  # type: ignore[import-untyped]
from celery import Celery, Task, bootsteps
from celery.worker import state
from celery.worker.components import Pool
from celery.worker.request import Request
from celery.worker.state import requests, task_reserved

log = logging.getLogger(__name__)

#: Events that wait for the consumer's own thread, which sends them after each round. Were there
#: more, Celery would send them from whatever thread made the last, and the engine's must not wait.
_EVENTS_WAITING = 100_000
#: How long a worker may take to answer its own remote command. Seconds.
_CONTROL_SECONDS = 5.0


def install_bootstep(app: Celery, step: type[bootsteps.StartStopStep]) -> None:
    """Put a step below the pool: started before it, stopped after it has drained.

    Documented is only that a step may require the pool, which is the other way round: an engine
    would then be stopped before the tasks that run on it have ended.
    """
    app.steps["worker"].add(step)
    Pool.requires = (*Pool.requires, step)


def listen_to_queue(app: Celery, worker_name: str, queue: str) -> None:
    """Let the running worker take messages of a further queue; also after its connection was lost.

    Documented is the remote command; what it makes of a queue that is selected already (it uses it as it is, not to
    be acknowledged) is not. Raises ``TimeoutError``, and what the broker raises.
    """
    app.amqp.queues.select_add(queue).no_ack = True
    if not app.control.add_consumer(queue, destination=[worker_name], reply=True, timeout=_CONTROL_SECONDS):
        raise TimeoutError(f"the worker did not say that it listens to {queue}")


def ignore_queue(app: Celery, worker_name: str, queue: str) -> None:
    """Let the running worker leave a queue. Raises ``TimeoutError``, and what the broker raises."""
    if not app.control.cancel_consumer(queue, destination=[worker_name], reply=True, timeout=_CONTROL_SECONDS):
        raise TimeoutError(f"the worker did not say that it has left {queue}")


def stop_if_asked() -> None:
    """Raise ``WorkerShutdown`` when the worker was told to stop. For steps that take long to start.

    Celery itself looks only between steps and once the consumer runs.
    """
    state.maybe_shutdown()


def disable_acknowledgement(app: Celery) -> None:
    """Let a message be gone from its queue once it is taken, with nothing to acknowledge.

    Celery acknowledges early here, yet between taking and acknowledging kombu keeps a
    message for redelivery; a Redis that goes away just then makes it end the whole worker
    (kombu 5.7: ``'NoneType' object has no attribute 'hostname'``). A message lost with its
    worker is noticed and sent again (``services.inference.failover``, and the job watchers).
    """
    for queue in app.amqp.queues.consume_from.values():
        queue.no_ack = True


class PreAckedRequest(Request):
    """A message that is gone from its queue already: there is nothing to acknowledge."""

    def acknowledge(self) -> None:
        self.acknowledged = True


def run_on_engine_loop(task: Task, app: Celery, consumer: Any, **_: Any) -> Callable[..., None]:
    """Celery's ``Task.Strategy``: return what takes each message of ``task``, whose body is a coroutine.

    Celery's own way (pool thread, tracer, two hand-overs) costs more than 1 ms of CPU a request. Here the
    coroutine runs on the loop of the worker's engines; Celery still counts it against ``-c``, lists it in
    ``inspect active``, refuses it when it is revoked or has expired, and sends its events.
    """
    host: Any = app.host
    eventer = consumer.event_dispatcher
    if eventer is not None:
        eventer.buffer_limit = _EVENTS_WAITING

    def take_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **_: Any) -> None:
        request = PreAckedRequest(
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

    return take_message


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
