"""The requests that a worker is running, and how each of them can be stopped."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum

from redis.exceptions import RedisError

from engines.types import Meter
from store.redis.control import Command
from store.redis.request_records import RequestRecord
from store.token_log.writer import LogWriter

#: A request that nobody has followed for this long lets go of its GPU share. Seconds. Longer
#: than a front door takes to come back, so that its clients find their streams running.
UNFOLLOWED_SECONDS = 10.0


class StopReason(Enum):
    """Why a run is stopped from outside."""

    #: A client wants no more.
    CANCELLED = "cancelled"
    #: The client left; it may come back.
    CLIENT_GONE = "client_gone"
    #: A line of a batch makes room for somebody who waits.
    PREEMPTED = "preempted"
    #: The worker's drain time is over.
    DRAIN = "drain"
    #: An operator took its model away by force.
    UNLOADED = "unloaded"


@dataclass
class ActiveRequest:
    """One request on the engine's loop."""

    record: RequestRecord
    writer: LogWriter
    task: asyncio.Task[object]
    stop_reason: StopReason | None = None
    #: Tokens so far, by the engine's count.
    usage: dict[str, int] | None = None
    #: Of the prompt's, those that had been computed before, for another request.
    cached_tokens: int = 0
    #: What counts the tokens of a call of ``/v1`` while it runs.
    meter: Meter | None = None
    #: The tokens of a whole answer so far, where it was stopped, as the log keeps them.
    unfinished_tokens: str = ""
    _unfollowed_since: float | None = field(default=None, repr=False)

    def stop(self, why: StopReason) -> None:
        """Cancel the run; the first reason counts. To be called on the loop."""
        if self.stop_reason is None:
            self.stop_reason = why
            self.task.cancel()

    def unfollowed(self, now: float) -> bool:
        """Whether nobody has followed this request for too long."""
        if self.writer.followers or self.record.detached:
            self._unfollowed_since = None
        elif self._unfollowed_since is None:
            self._unfollowed_since = now
        return self._unfollowed_since is not None and now - self._unfollowed_since >= UNFOLLOWED_SECONDS


class ActiveRequests:
    """All runs of a worker. Lives on the engine's loop; others may count."""

    def __init__(self) -> None:
        self._active: dict[str, ActiveRequest] = {}
        #: Lines of batches among them that make room.
        self._preemptible: dict[str, ActiveRequest] = {}
        #: Model -> when the last run on it ended (``time.monotonic``).
        self.ended_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._active)

    def count(self) -> tuple[int, int]:
        """Return how many are lines of batches, and how many somebody waits for."""
        running = list(self._active.values())
        background = sum(active.record.background for active in running)
        light = sum(active.record.light for active in running)
        return background, len(running) - background - light

    def add(self, active: ActiveRequest) -> None:
        """A newer attempt at the same request replaces the older one, which is refused by its log.

        Lines of batches make room for a request that somebody waits for: with the engine's next step.
        """
        if active.record.preemptible:
            self._preemptible[active.record.id] = active
        elif not active.record.background and not active.record.light:
            for line in self._preemptible.values():
                line.stop(StopReason.PREEMPTED)
        self._active[active.record.id] = active

    def remove(self, active: ActiveRequest) -> None:
        if self._active.get(active.record.id) is active:
            del self._active[active.record.id]
            self._preemptible.pop(active.record.id, None)
            self.ended_at[active.record.model] = time.monotonic()

    def of_model(self, model: str) -> int:
        """How many run on a model."""
        return sum(active.record.model == model for active in self._active.values())

    def handle_command(self, command: str, request_id: str) -> None:
        """Carry out a command of the front door."""
        active = self._active.get(request_id)
        if active is not None:
            active.stop(StopReason.CANCELLED if command == Command.CANCEL else StopReason.CLIENT_GONE)

    def stop_all(self, why: StopReason, model: str | None = None) -> None:
        """Stop what runs, on one model or on all."""
        for active in list(self._active.values()):
            if model is None or active.record.model == model:
                active.stop(why)

    async def watch(self, followers: Callable[[str], Awaitable[int]]) -> None:
        """Stop the runs that nobody follows, until cancelled.

        ``followers`` counts a request's followers now: what came back with its last entry
        may be old.
        """
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for active in [active for active in self._active.values() if active.unfollowed(now)]:
                try:
                    active.writer.followers = await followers(active.record.id)
                except (RedisError, OSError):
                    # Who cannot be asked for is not missed.
                    active.writer.followers = 1
                if not active.writer.followers:
                    active.stop(StopReason.CLIENT_GONE)
