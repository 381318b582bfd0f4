"""What happens to a training job, as it happens, for every transport."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from store.jobs import ENDED, EventKind
from store.models import TrainingEvent
from webapp.services import Services

#: How often a follower looks for new events. Seconds.
_LOOK_SECONDS = 0.5
_ENDED = {status.value for status in ENDED}


def follow(own: Services, job_id: str, after: int, gone: Callable[[], bool]) -> Iterator[TrainingEvent | None]:
    """Yield the events behind the id ``after``, up to the job's end; None for every keep-alive time of silence.

    Ends early, without the closing event, when the client has left or this process is being stopped.
    """
    spoke = time.monotonic()
    while True:
        found = own.jobs.events(job_id, after)
        for event in found:
            after, spoke = event.id, time.monotonic()
            yield event
        if found and is_end(found[-1]):
            return
        if found:
            continue
        if gone() or own.lifecycle.stopping:
            return
        if time.monotonic() - spoke >= own.settings.keepalive:
            spoke = time.monotonic()
            yield None
        time.sleep(_LOOK_SECONDS)


def is_end(event: TrainingEvent) -> bool:
    """Whether the job has ended with this event (it may still be resumed, if it failed)."""
    return event.kind == EventKind.STATUS and event.data["status"] in _ENDED


def describe_event(event: TrainingEvent) -> dict[str, Any]:
    """An event as clients see it."""
    data = {camel(name): value for name, value in event.data.items()}
    created = event.created_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"jobId": event.job_id, "step": event.step, **data, "createdAt": created}


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)
