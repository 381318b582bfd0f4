"""One model of a worker: what it shall be, and how far the worker is with it."""

import time
from dataclasses import dataclass, field
from typing import Any

from engines.base import Engine
from engines.catalogue import fingerprint
from engines.model_spec import ModelSpec
from store.redis.presence import ModelStatus


@dataclass(frozen=True)
class DesiredModel:
    """A model that the worker shall serve. ``key`` is another one each time that an operator asks for it."""

    spec: ModelSpec
    key: int = 0


@dataclass
class HostedModel:
    """One model and how far the worker is with it."""

    desired: DesiredModel
    #: Whether it is loaded when somebody asks for it, and gives way to others (a ``--swap`` worker's).
    on_demand: bool = False
    state: str = ModelStatus.LOADING
    since: float = field(default_factory=time.time)
    #: Why it failed.
    reason: str = ""
    #: The entry with its weights on this host, once they are.
    fetched: ModelSpec | None = None
    engine: Engine | None = None
    #: Whether the engine can be asked.
    loaded: bool = False
    #: Whether what runs on it is ended while it is drained.
    forced: bool = False
    #: Bytes of a download: ``have``, ``total``, ``per_second``.
    progress: dict[str, int] | None = None
    #: Whether an operator asks for it; as good as a request that waits.
    wanted: bool = False
    #: When it became ready last, and how long that had taken. ``time.monotonic``, seconds.
    ready_at: float = 0.0
    load_seconds: float = 0.0
    #: How often it was loaded or woken.
    loads: int = 0

    @property
    def spec(self) -> ModelSpec:
        """The model as far as it is known: where its weights are, once they are here."""
        return self.fetched or self.desired.spec

    def become(self, state: str, reason: str = "") -> None:
        self.state, self.reason, self.since, self.progress = state, reason, time.time(), None

    def become_ready(self, started: float) -> None:
        """It takes requests from now on; ``started`` is when its loading began (``time.monotonic``)."""
        self.ready_at = time.monotonic()
        self.load_seconds = self.ready_at - started
        self.loads += 1
        self.wanted = False
        self.become(ModelStatus.READY)

    def describe(self) -> dict[str, Any]:
        """What the worker's presence says of it."""
        state = self.state
        if state == ModelStatus.LOADING and self.engine is not None and self.engine.warming:
            state = ModelStatus.WARMING
        described: dict[str, Any] = {"state": state, "since": self.since, "fingerprint": fingerprint(self.desired.spec)}
        if self.on_demand:
            described |= {"on_demand": True, "loads": self.loads}
        if self.reason:
            described["reason"] = self.reason
        if self.progress:
            described["progress"] = self.progress
        return described
