"""Whether requests can be served, and in detail why not."""

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import redis
from redis.exceptions import RedisError

from services.lifecycle import Lifecycle
from store.redis.presence import Fleet, PresenceReader
from tasks.broker import queues, submit


@dataclass(frozen=True)
class EngineLoad:
    """One engine of one worker. Counts are sequences."""

    worker: str
    state: str
    model: str
    engine: str | None
    in_flight: int
    running: int
    waiting: int
    peak_running: int


@dataclass(frozen=True)
class HealthReport:
    """The system at one moment."""

    started_at: datetime
    max_queue_size: int
    #: None while Redis is away.
    redis_latency_ms: float | None = None
    workers_total: int = 0
    workers_healthy: int = 0
    pending_tasks: int = 0
    engines: list[EngineLoad] = field(default_factory=list)

    @property
    def redis_up(self) -> bool:
        return self.redis_latency_ms is not None

    @property
    def up(self) -> bool:
        """Redis answers and at least one worker is ready."""
        return self.redis_up and self.workers_healthy > 0


class HealthService:
    """Looks afresh at every call."""

    def __init__(
        self, client: redis.Redis, presence: PresenceReader, lifecycle: Lifecycle, max_queue_size: int
    ) -> None:
        self._redis = client
        self._presence = presence
        self._lifecycle = lifecycle
        self._max_queue_size = max_queue_size

    def report(self) -> HealthReport:
        """Return the system's health; a Redis that is away is part of it, not an error."""
        started, bound = self._lifecycle.started_at, self._max_queue_size
        try:
            ping_started = time.perf_counter()
            self._redis.ping()
            latency = round((time.perf_counter() - ping_started) * 1000, 3)
            fleet = self._presence.fleet(fresh=True)
            pending = queues.pending(self._redis, submit.all_queues(fleet))
        except (RedisError, OSError):
            return HealthReport(started, bound)
        healthy = sum(worker.ready for worker in fleet.living)
        total = len(fleet.living) + len(fleet.lost)
        return HealthReport(started, bound, latency, total, healthy, pending, _engines(fleet))


def _engines(fleet: Fleet) -> list[EngineLoad]:
    def load(worker: Any, model: str, info: dict[str, Any]) -> EngineLoad:
        counts = (info.get(name, 0) for name in ("running", "waiting", "peak_running"))
        return EngineLoad(worker.name, worker.state, model, info.get("engine"), worker.in_flight, *counts)

    return [load(worker, model, info) for worker in fleet.living for model, info in worker.models.items()]
