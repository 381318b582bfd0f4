"""Which workers live, what they serve and how loaded they are.

A worker's record expires unless it is renewed, by Redis' own clock, so the clocks of the
hosts do not matter. A worker that vanished without withdrawing stays listed as lost for
a while, so that operators see it.
"""

import json
import time
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import redis

from store.redis import keys as redis_keys

#: How often a worker renews its record. Seconds.
RENEW_SECONDS = 1.0
#: How long a record lives: two renewals may be missed. Milliseconds.
TTL_MS = 2500
#: How long a worker that vanished is listed. Milliseconds.
LOST_FOR_MS = 600_000
#: How old the list may be that a front door chooses from; failover refreshes it before. Seconds.
CACHE_SECONDS = 0.5
#: After Redis has come back, workers get this long to show themselves. Seconds.
SETTLE_SECONDS = 4.0

#: KEYS worker record, sorted set; ARGV record, ttl, incarnation.
_RENEW = """
local now = redis.call('TIME')
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], now[1] * 1000 + math.floor(now[2] / 1000), ARGV[3])
return 1
"""


class State:
    """What a worker is about."""

    LOADING = "loading"
    READY = "ready"
    #: It finishes what it has and takes nothing new.
    DRAINING = "draining"
    #: Its engine is dead; it is about to leave.
    FAILED = "failed"


class ModelStatus:
    """How far a worker is with one model."""

    DOWNLOADING = "downloading"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    #: It finishes what runs on it and takes nothing new.
    DRAINING = "draining"
    FAILED = "failed"
    #: It is loaded when somebody asks for it.
    UNLOADED = "unloaded"
    #: As ``UNLOADED``, with its weights in the host's memory: it is woken sooner.
    ASLEEP = "asleep"
    #: On the way to ready.
    COMING = (DOWNLOADING, LOADING, WARMING)


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says of itself."""

    #: Celery's node name, e.g. ``gpu0@host``.
    name: str
    #: The name, and what tells this process from one that had the name before.
    instance_id: str
    state: str
    queues: list[str]
    #: Model id -> ``EngineInfo`` as a dictionary; while loading, only the ids are there.
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Model id -> ``state`` (``ModelStatus``), ``since`` (Unix time) and more: also of those it does not serve (now).
    #: ``on_demand`` is true for those that it loads when somebody asks for them.
    model_states: dict[str, dict[str, Any]] = field(default_factory=dict)
    in_flight: int = 0
    #: Of those that are being answered: lines of batches, and requests that somebody waits for.
    background: int = 0
    interactive: int = 0
    #: Requests it runs at once.
    capacity: int = 0

    @property
    def ready(self) -> bool:
        return self.state == State.READY

    def to_json(self) -> str:
        document = asdict(self)
        # Its name on the wire, which processes of other versions read.
        document["incarnation"] = document.pop("instance_id")
        return json.dumps(document)

    @classmethod
    def from_json(cls, text: bytes) -> "WorkerInfo":
        """What a newer version adds is passed over."""
        document = json.loads(text)
        document["instance_id"] = document.pop("incarnation")
        return cls(**{name: value for name, value in document.items() if name in _FIELDS})


_FIELDS = frozenset(field.name for field in fields(WorkerInfo))


class PresenceAnnouncer:
    """The worker's side."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._renew = client.register_script(_RENEW)

    def renew(self, info: WorkerInfo) -> None:
        keys = [redis_keys.worker(info.instance_id), redis_keys.workers()]
        self._renew(keys=keys, args=[info.to_json(), TTL_MS, info.instance_id])

    def withdraw(self, instance_id: str) -> None:
        """Remove the record, so that the worker is not listed as lost."""
        with self._client.pipeline() as pipeline:
            pipeline.delete(redis_keys.worker(instance_id))
            pipeline.zrem(redis_keys.workers(), instance_id)
            pipeline.execute()


@dataclass(frozen=True)
class Fleet:
    """All workers at one moment."""

    living: tuple[WorkerInfo, ...]
    #: Instance ids whose record lapsed without withdrawal, and whose name no other worker has.
    lost: tuple[str, ...] = ()
    #: How long this Redis has been running. Seconds.
    redis_uptime: float = 0.0

    def is_alive(self, instance_id: str) -> bool:
        return any(worker.instance_id == instance_id for worker in self.living)

    @property
    def is_reliable(self) -> bool:
        """Whether a missing worker is a dead one: a Redis that has just come back knows nobody yet."""
        return self.redis_uptime > SETTLE_SECONDS

    def serving(self, model: str) -> list[WorkerInfo]:
        """Return the workers that would take a request for ``model`` now."""
        return [worker for worker in self.living if worker.ready and model in worker.models]

    def loading(self, model: str) -> list[WorkerInfo]:
        def loads(worker: WorkerInfo) -> bool:
            if worker.state in (State.DRAINING, State.FAILED):
                return False
            if worker.state == State.LOADING and model in worker.models:
                return True
            return worker.model_states.get(model, {}).get("state") in ModelStatus.COMING

        return [worker for worker in self.living if loads(worker)]

    def on_demand(self, model: str) -> bool:
        """Whether a worker would load ``model`` for a request that waits in the model's own queue."""
        return any(worker.ready and _is_on_demand(state) for worker, state in self.states(model))

    def askable(self, model: str) -> bool:
        """Whether a request for ``model`` is taken, now or once the model is loaded for it."""
        return bool(self.serving(model)) or self.on_demand(model)

    def failed_on_demand(self, model: str) -> bool:
        """Whether a worker tried to load ``model`` for those who wait, in vain, and no other would."""
        states = (state for _, state in self.states(model))
        tried = any(state.get("on_demand") and state["state"] == ModelStatus.FAILED for state in states)
        return tried and not self.askable(model) and not self.loading(model)

    def states(self, model: str) -> list[tuple[WorkerInfo, dict[str, Any]]]:
        """Return what each living worker says of a model that it has, or had, to do with."""
        return [(worker, worker.model_states[model]) for worker in self.living if model in worker.model_states]

    def engine_info(self, model: str) -> dict[str, Any] | None:
        """Return what a serving worker says of ``model``, or None."""
        for worker in self.serving(model):
            return worker.models[model]
        return None


def _is_on_demand(state: dict[str, Any]) -> bool:
    return bool(state.get("on_demand")) and state["state"] != ModelStatus.FAILED


class PresenceReader:
    """The reading side. The list is cached for a moment, shared by all threads."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._cached = Fleet(())
        self._expires = 0.0

    def fleet(self, fresh: bool = False) -> Fleet:
        """Return the workers; never older than ``CACHE_SECONDS``. Raises ``redis.RedisError``."""
        if fresh or time.monotonic() >= self._expires:
            self._cached = self._load()
            self._expires = time.monotonic() + CACHE_SECONDS
        return self._cached

    def _load(self) -> Fleet:
        # Not a script: what its keys are is known only after the first answer, and a script must declare its keys
        # (Redis-like servers with threads refuse others).
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.info("server")
            pipeline.zrange(redis_keys.workers(), 0, -1, withscores=True)
            (seconds, micros), server, members = pipeline.execute()
        uptime = float(server.get("uptime_in_seconds", 0))
        oldest = seconds * 1000 + micros // 1000 - LOST_FOR_MS
        instance_ids = [member for member, renewed in members if renewed > oldest]
        if len(instance_ids) < len(members):
            self._client.zremrangebyscore(redis_keys.workers(), "-inf", oldest)
        keys = [redis_keys.worker(instance_id.decode()) for instance_id in instance_ids]
        texts: Any = self._client.mget(keys) if keys else []
        living = tuple(WorkerInfo.from_json(text) for text in texts if text)
        names = {worker.name for worker in living}
        lapsed = (name.decode() for name, text in zip(instance_ids, texts, strict=True) if not text)
        # A worker that was started again under its name is not missed any more.
        lost = tuple(instance_id for instance_id in lapsed if instance_id.rpartition(":")[0] not in names)
        return Fleet(living, lost, uptime)
