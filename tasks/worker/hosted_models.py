"""The models of one worker: loaded, drained and unloaded on the engines' loop, while others are served.

What the worker shall serve is told as a whole (:meth:`HostedModels.reconcile`), as often as it may have changed; what
is missing is loaded, one after the other, and what is too much is drained: it takes nothing new, and its engine stops
once the last answer on it has ended. An operator's change never cuts an answer.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engines.base import Engine, create_engine, require_known_engine
from engines.catalogue import fingerprint
from engines.errors import ConfigError, EngineError
from engines.model_spec import ModelSpec
from engines.models.weights import get_weights
from settings import child_environment
from store.redis.presence import ModelStatus
from tasks.worker.inference.active_requests import ActiveRequests, StopReason

log = logging.getLogger(__name__)

#: How long a drained model goes on taking what front doors had sent before they saw it. Seconds: longer than their list
#: of workers is old (``store.redis.presence.CACHE_SECONDS``), and than a message waits in a queue that is listened to.
SETTLE_SECONDS = 2.0
#: How often a drained model is looked at. Seconds.
_LOOK_SECONDS = 0.1
#: Pauses between tries to change what queues are listened to. Seconds; a Redis that is restarted is back by then.
_SWITCH_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


class Queues(Protocol):
    """The queues that the worker listens to, as its models come and go."""

    def listen(self, model: str) -> None: ...
    def ignore(self, model: str) -> None: ...


@dataclass(frozen=True)
class DesiredModel:
    """A model that the worker shall serve. A failed one is tried again when ``key`` is another than before."""

    spec: ModelSpec
    key: int = 0


@dataclass
class HostedModel:
    """One model and how far the worker is with it."""

    desired: DesiredModel
    state: str = ModelStatus.LOADING
    since: float = field(default_factory=time.time)
    #: Why it failed.
    reason: str = ""
    engine: Engine | None = None
    #: Whether the engine can be asked.
    loaded: bool = False
    #: Whether what runs on it is ended while it is drained.
    forced: bool = False
    #: Bytes of a download: ``have``, ``total``, ``per_second``.
    progress: dict[str, int] | None = None

    def become(self, state: str, reason: str = "") -> None:
        self.state, self.reason, self.since, self.progress = state, reason, time.time(), None

    def describe(self) -> dict[str, Any]:
        """What the worker's presence says of it."""
        state = self.state
        if state == ModelStatus.LOADING and self.engine is not None and self.engine.warming:
            state = ModelStatus.WARMING
        described: dict[str, Any] = {"state": state, "since": self.since, "fingerprint": fingerprint(self.desired.spec)}
        if self.reason:
            described["reason"] = self.reason
        if self.progress:
            described["progress"] = self.progress
        return described


class HostedModels:
    """All models of a worker. Lives on the engines' loop; others may look."""

    def __init__(self, active_requests: ActiveRequests, changed: threading.Event, models_root: Path) -> None:
        """``models_root`` is where models of the package index are kept."""
        self._models_root = models_root
        self._active_requests = active_requests
        #: Set when something changed that the worker's presence tells.
        self._changed = changed
        self._models: dict[str, HostedModel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading = asyncio.Lock()
        self._desired: Mapping[str, DesiredModel] = {}
        #: Set once the worker takes messages.
        self.queues: Queues | None = None
        #: Called with a model whose engine is ready.
        self.on_ready: Callable[[ModelSpec], Coroutine[Any, Any, None]] | None = None

    def engine_of(self, model: str) -> Engine | None:
        """Return the engine that takes a request which was sent here: also a draining one."""
        hosted = self._models.get(model)
        return hosted.engine if hosted is not None and hosted.loaded else None

    def engines(self) -> dict[str, Engine]:
        """Return the engines that are loaded."""
        loaded = list(self._models.items())
        return {model: engine for model, _ in loaded if (engine := self.engine_of(model)) is not None}

    def serving(self) -> dict[str, Engine]:
        """Return the engines that take new requests."""
        ready = [(model, hosted) for model, hosted in list(self._models.items()) if hosted.state == ModelStatus.READY]
        return {model: hosted.engine for model, hosted in ready if hosted.engine is not None}

    def describe(self) -> dict[str, dict[str, Any]]:
        """What the worker's presence says of each model."""
        return {model: hosted.describe() for model, hosted in list(self._models.items())}

    async def load_first(self, desired: Mapping[str, DesiredModel]) -> None:
        """Load what the worker was started for. Raises ``EngineError``, ``ConfigError``: it cannot serve then."""
        self._desired = desired
        async with self._loading:
            for model, each in desired.items():
                hosted = self._models[model] = HostedModel(each)
                await self._start(hosted)
                hosted.become(ModelStatus.READY)

    def force(self, model: str) -> None:
        """End what runs on a model, and what still comes until it is unloaded."""
        hosted = self._models.get(model)
        if hosted is not None:
            hosted.forced = True
        self._active_requests.stop_all(StopReason.UNLOADED, model)

    def reconcile(self, desired: Mapping[str, DesiredModel]) -> None:
        """Serve these models and no others, as soon as may be."""
        self._desired = desired
        for model, each in desired.items():
            hosted = self._models.get(model)
            if hosted is None or (hosted.state == ModelStatus.FAILED and hosted.desired.key != each.key):
                self._models[model] = HostedModel(each)
                self._spawn(self._load(self._models[model]))
        for model, hosted in list(self._models.items()):
            if model not in desired and hosted.state == ModelStatus.READY:
                hosted.become(ModelStatus.DRAINING)
                self._spawn(self._drain(model, hosted))
            elif model not in desired and hosted.state == ModelStatus.FAILED:
                del self._models[model]
        self._changed.set()

    async def stop_all(self) -> None:
        """Free every engine, whatever runs."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for model, hosted in self._models.items():
            await self._stop(hosted.engine, model)

    async def _start(self, hosted: HostedModel) -> None:
        """Load a model's engine. Raises ``EngineError``, ``ConfigError``."""
        spec = hosted.desired.spec
        hosted.become(ModelStatus.LOADING)
        log.info("Loading model", extra={"model": spec.id, "engine": spec.engine})
        # Before anything is fetched for it.
        require_known_engine(spec)
        if spec.engine != "fake":
            spec = await self._get_weights(spec, hosted)
        hosted.engine = create_engine(spec)
        await hosted.engine.start()
        hosted.loaded = True
        limit = hosted.engine.info().max_model_len
        log.info("Model is loaded", extra={"model": spec.id, "engine": spec.engine, "max_model_len": limit})

    async def _get_weights(self, spec: ModelSpec, hosted: HostedModel) -> ModelSpec:
        """Return the model with its weights on this host. Raises ``EngineStartError``."""

        def tell(have: int, total: int, per_second: int) -> None:
            if have < total and hosted.state == ModelStatus.LOADING:
                hosted.become(ModelStatus.DOWNLOADING)
            if hosted.state == ModelStatus.DOWNLOADING:
                hosted.progress = {"have": have, "total": total, "per_second": per_second}
                self._changed.set()

        found = await get_weights(spec, self._models_root, child_environment(), tell)
        hosted.become(ModelStatus.LOADING)
        return found

    async def _load(self, hosted: HostedModel) -> None:
        """Load a model beside those that are served; what goes wrong is told, and the others go on."""
        model = hosted.desired.spec.id
        async with self._loading:
            if model not in self._desired:
                self._forget(model, hosted)
                return
            try:
                await self._start(hosted)
            except (EngineError, ConfigError) as error:
                log.error("The model cannot be loaded: %s", error, extra={"model": model})
                await self._give_up(hosted, str(error))
                return
            except (Exception, SystemExit) as error:
                # Whatever an engine may raise: the other models of this worker must go on.
                log.exception("The model cannot be loaded", extra={"model": model})
                await self._give_up(hosted, f"{type(error).__name__}; the worker's log has the details")
                return
            if self.on_ready is not None:
                try:
                    await self.on_ready(hosted.desired.spec)
                except Exception:
                    # Adapters load at their first use as well.
                    log.exception("The adapters of a model cannot be loaded ahead", extra={"model": model})
            await self._switch(model, listen=True)
            hosted.become(ModelStatus.READY)
        # It may have been taken away again meanwhile.
        self.reconcile(self._desired)

    async def _give_up(self, hosted: HostedModel, reason: str) -> None:
        engine, hosted.engine, hosted.loaded = hosted.engine, None, False
        hosted.become(ModelStatus.FAILED, reason)
        self._changed.set()
        await self._stop(engine, hosted.desired.spec.id)

    async def _drain(self, model: str, hosted: HostedModel) -> None:
        """Take nothing new; once nothing runs any more, free the engine. Ends early when the model is desired again."""
        log.info("Model is drained, as an operator asked", extra={"model": model})
        self._changed.set()
        settled = time.monotonic() + SETTLE_SECONDS
        listens = True
        while time.monotonic() < settled or self._active_requests.of_model(model):
            if model in self._desired:
                if not listens:
                    await self._switch(model, listen=True)
                hosted.forced = False
                hosted.become(ModelStatus.READY)
                # It may have been taken away again while the queue was joined.
                self.reconcile(self._desired)
                return
            if hosted.forced:
                self._active_requests.stop_all(StopReason.UNLOADED, model)
            if listens and time.monotonic() >= settled - SETTLE_SECONDS / 2:
                # By now nothing new comes in; what is in the queue of several is for the others.
                listens = False
                await self._switch(model, listen=False)
            await asyncio.sleep(_LOOK_SECONDS)
        engine, hosted.engine, hosted.loaded = hosted.engine, None, False
        await self._stop(engine, model)
        log.info("Model is unloaded", extra={"model": model})
        self._forget(model, hosted)
        self.reconcile(self._desired)

    async def _stop(self, engine: Engine | None, model: str) -> None:
        """Free an engine; one that does not end well must not keep its model from being loaded again."""
        if engine is None:
            return
        try:
            await engine.stop()
        except Exception:
            log.exception("The engine did not end well", extra={"model": model})

    async def _switch(self, model: str, listen: bool) -> None:
        """Listen to a model's queue, or leave it; Redis may be away for a while."""
        if self.queues is None:
            return
        change = self.queues.listen if listen else self.queues.ignore
        for pause in _SWITCH_PAUSES:
            try:
                await asyncio.to_thread(change, model)
                return
            except Exception as error:
                log.warning("The model's queue cannot be changed now: %r", error, extra={"model": model})
                await asyncio.sleep(pause)
        # What comes through a queue that was not left is handed on; one that was not joined is tried at the next load.
        log.error("The model's queue could not be changed", extra={"model": model, "listen": listen})

    def _forget(self, model: str, hosted: HostedModel) -> None:
        if self._models.get(model) is hosted:
            del self._models[model]
        self._changed.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
