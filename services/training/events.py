"""What happens to a training job, as it happens, for every face."""

import time
from collections.abc import Iterator

from services.access import Access
from services.context import RequestContext
from services.lifecycle import Lifecycle
from store.sql.jobs import TERMINAL, JobStore
from store.sql.tables import TrainingEvent

#: How often a follower looks for new events. Seconds.
_POLL_SECONDS = 0.5
_ENDED = {status.value for status in TERMINAL}


class FollowingStopped(Exception):
    """Nobody follows any more, or this process was told to stop; the job goes on."""


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

    It returns when the job has ended and everything was yielded, also to whoever comes back after that. Raises
    ``FollowingStopped`` when the client has left or this process is being stopped, ``Unauthenticated`` when
    the key was revoked meanwhile, ``SQLAlchemyError``.
    """
    last_yield = time.monotonic()
    while True:
        access.require_active(context.principal)
        # Looked at before the events: what ends it is written together with its closing event.
        ended = _has_ended(jobs, job_id)
        found = jobs.events(job_id, after)
        for event in found:
            after, last_yield = event.id, time.monotonic()
            yield event
        if found:
            continue
        if ended:
            return
        if context.disconnected() or lifecycle.stopping:
            raise FollowingStopped
        if time.monotonic() - last_yield >= keepalive:
            last_yield = time.monotonic()
            yield None
        time.sleep(_POLL_SECONDS)


def _has_ended(jobs: JobStore, job_id: str) -> bool:
    """Whether no event can come (a failed job may still be resumed: then it has not ended any more)."""
    job = jobs.load(job_id)
    return job is None or job.status in _ENDED
