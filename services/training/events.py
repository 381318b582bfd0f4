"""What happens to a training job, as it happens, for every face."""

import time
from collections.abc import Iterator

from services.access import Access
from services.context import RequestContext
from services.lifecycle import Lifecycle
from store.sql.jobs import TERMINAL, EventKind, JobStore
from store.sql.tables import TrainingEvent

#: How often a follower looks for new events. Seconds.
_POLL_SECONDS = 0.5
_ENDED = {status.value for status in TERMINAL}


def follow(
    jobs: JobStore,
    access: Access,
    lifecycle: Lifecycle,
    keepalive: float,
    context: RequestContext,
    job_id: str,
    after: int,
) -> Iterator[TrainingEvent | None]:
    """Yield the events after the id ``after``, up to the job's end; None for every ``keepalive`` of silence.

    Ends early, without the closing event, when the client has left or this process is being stopped.
    Raises ``Unauthenticated`` when the key was revoked meanwhile, ``SQLAlchemyError``.
    """
    last_yield = time.monotonic()
    while True:
        access.require_active(context.principal)
        found = jobs.events(job_id, after)
        for event in found:
            after, last_yield = event.id, time.monotonic()
            yield event
        if found and is_end(found[-1]):
            return
        if found:
            continue
        if context.disconnected() or lifecycle.stopping:
            return
        if time.monotonic() - last_yield >= keepalive:
            last_yield = time.monotonic()
            yield None
        time.sleep(_POLL_SECONDS)


def is_end(event: TrainingEvent) -> bool:
    """Whether the job has ended with this event (it may still be resumed, if it failed)."""
    return event.kind == EventKind.STATUS and event.data["status"] in _ENDED
