"""The requests that a worker is running, and how each of them can be stopped."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum

from redis.exceptions import RedisError

from store.control import Command
from store.requests import RequestRecord
from store.writer import LogWriter

#: A request that nobody has followed for this long lets go of its GPU share. Seconds. Longer
#: than a front door takes to come back, so that its clients find their streams running.
UNFOLLOWED_SECONDS = 10.0


class Stop(Enum):
    """Why a run is stopped from outside."""

    #: A client wants no more.
    CANCELLED = "cancelled"
    #: The client left; it may come back.
    CLIENT_GONE = "client_gone"
    #: The worker's drain time is over.
    DRAIN = "drain"


@dataclass
class Run:
    """One request on the engine's loop."""

    record: RequestRecord
    writer: LogWriter
    task: asyncio.Task[object]
    stopped: Stop | None = None
    #: Tokens so far, by the engine's count.
    usage: dict[str, int] | None = None
    _unfollowed_since: float | None = field(default=None, repr=False)

    def stop(self, why: Stop) -> None:
        """Cancel the run; the first reason counts. To be called on the loop."""
        if self.stopped is None:
            self.stopped = why
            self.task.cancel()

    def unfollowed(self, now: float) -> bool:
        """Whether nobody has heard this run's entries for too long."""
        if self.writer.followers:
            self._unfollowed_since = None
        elif self._unfollowed_since is None:
            self._unfollowed_since = now
        return self._unfollowed_since is not None and now - self._unfollowed_since >= UNFOLLOWED_SECONDS


class Runs:
    """All runs of a worker. Lives on the engine's loop; others may count."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, run: Run) -> None:
        """A newer attempt at the same request replaces the older one, which is refused by its log."""
        self._runs[run.record.id] = run

    def remove(self, run: Run) -> None:
        if self._runs.get(run.record.id) is run:
            del self._runs[run.record.id]

    def of_model(self, model: str) -> int:
        """How many run on a model."""
        return sum(run.record.model == model for run in self._runs.values())

    def act(self, command: str, request_id: str) -> None:
        """Do what the front door told."""
        run = self._runs.get(request_id)
        if run is not None:
            run.stop(Stop.CANCELLED if command == Command.CANCEL else Stop.CLIENT_GONE)

    def stop_all(self, why: Stop) -> None:
        for run in list(self._runs.values()):
            run.stop(why)

    async def watch(self, followers: Callable[[str], Awaitable[int]]) -> None:
        """Stop the runs that nobody follows, until cancelled.

        ``followers`` counts a request's followers now: what a run heard with its last entry
        may be old.
        """
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for run in [run for run in self._runs.values() if run.unfollowed(now)]:
                try:
                    run.writer.followers = await followers(run.record.id)
                except (RedisError, OSError):
                    # Who cannot be asked for is not missed.
                    run.writer.followers = 1
                if not run.writer.followers:
                    run.stop(Stop.CLIENT_GONE)
