"""The models of one worker: loaded, drained and unloaded on the engines' loop, while others are served.

What the worker shall serve is told as a whole (:meth:`HostedModels.reconcile`), as often as it may have changed; what
is missing is loaded, one after the other, and what is too much is drained: it takes nothing new, and its engine stops
once the last answer on it has ended. An operator's change never cuts an answer.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.base import Engine
from engines.model_spec import ModelSpec
from store.redis.presence import ModelStatus
from tasks.worker.inference.active_requests import ActiveRequests, StopReason
from tasks.worker.models.hosted import DesiredModel, HostedModel
from tasks.worker.models.loader import LOAD_ERRORS, ModelLoader
from tasks.worker.models.queue_switch import QueueSwitch

log = logging.getLogger(__name__)

#: How long a drained model goes on taking what front doors had sent before they saw it. Seconds: longer than their list
#: of workers is old (``store.redis.presence.CACHE_SECONDS``), and than a message waits in a queue that is listened to.
SETTLE_SECONDS = 2.0
#: How often a drained model is looked at. Seconds.
LOOK_SECONDS = 0.1
#: States of a model that has no memory, and may be loaded.
_AT_REST = (ModelStatus.UNLOADED, ModelStatus.ASLEEP, ModelStatus.FAILED)


class HostedModels:
    """All models of a worker. Lives on the engines' loop; others may look."""

    def __init__(
        self, active_requests: ActiveRequests, changed: threading.Event, models_root: Path, on_demand: bool = False
    ) -> None:
        """``models_root`` is where models of the package index are kept; ``on_demand``: models are loaded when they are
        asked for (``tasks.worker.models.swapper``), not when they are told."""
        self.on_demand = on_demand
        #: What starts and frees engines; for what belongs to this package.
        self.loader = ModelLoader(changed, models_root, sleeps=on_demand)
        self._active_requests = active_requests
        #: Set when something changed that the worker's presence tells.
        self.changed = changed
        self._models: dict[str, HostedModel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading = asyncio.Lock()
        self._desired: Mapping[str, DesiredModel] = {}
        #: Changes what the worker listens to, once it takes messages.
        self.queues = QueueSwitch()
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

    def all(self) -> list[HostedModel]:
        """Return every model that the worker has to do with."""
        return list(self._models.values())

    def describe(self) -> dict[str, dict[str, Any]]:
        """What the worker's presence says of each model."""
        return {model: hosted.describe() for model, hosted in list(self._models.items())}

    async def load_first(self, desired: Mapping[str, DesiredModel], now: Sequence[str]) -> None:
        """Load those models of the worker that it shall have at once. Raises ``EngineError``, ``ConfigError`` where not
        one of them can be loaded; one among others is ``failed``, and they are served."""
        self._desired = desired
        for model, each in desired.items():
            self._models[model] = HostedModel(each, self.on_demand)
            if model not in now:
                self._models[model].become(ModelStatus.UNLOADED)
        failures = [failure for model in now if (failure := await self._load_first(model)) is not None]
        for model in desired:
            # On demand, the first models may be one of many: then the next one is tried.
            if len(failures) < len(now) or model in now or not self.on_demand:
                continue
            if await self._load_first(model) is None:
                return
        if failures and len(failures) == len(now):
            raise failures[0]

    async def _load_first(self, model: str) -> Exception | None:
        """Load one model before the worker takes messages; return why it cannot be."""
        hosted, started = self._models[model], time.monotonic()
        async with self._loading:
            try:
                await self.loader.start(hosted)
            except LOAD_ERRORS as error:
                log.error("The model cannot be loaded: %s", error, extra={"model": model})
                await self._give_up(hosted, str(error))
                return error
            hosted.become_ready(started)
            return None

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
            if hosted is None:
                self._models[model] = hosted = HostedModel(each, self.on_demand)
                self._ask_for(hosted)
            elif hosted.desired != each:
                self._take_over(hosted, each)
        for model, hosted in list(self._models.items()):
            if model in desired:
                continue
            if hosted.state == ModelStatus.READY:
                hosted.become(ModelStatus.DRAINING)
                self.spawn(self._drain(model, hosted))
            elif hosted.state in _AT_REST:
                self._forget(model, hosted)
                self.spawn(self.loader.stop(hosted))
        self.changed.set()

    def _take_over(self, hosted: HostedModel, desired: DesiredModel) -> None:
        """An operator changed a model's entry, or asks for it."""
        asked = hosted.desired.key != desired.key
        if hosted.state not in _AT_REST:
            # What it runs with stays until it is loaded again; what was asked for is there, or coming, or comes back.
            hosted.desired = DesiredModel(hosted.desired.spec, desired.key)
            if asked and self.on_demand and hosted.state == ModelStatus.DRAINING:
                hosted.wanted = True
            return
        hosted.desired, hosted.fetched = desired, None
        if hosted.state == ModelStatus.ASLEEP:
            # It would wake with its old entry.
            hosted.become(ModelStatus.UNLOADED)
            self.spawn(self.loader.stop(hosted))
        if asked:
            self._ask_for(hosted)

    def refresh(self) -> None:
        """Look again at what the worker shall serve: it may have been changed while something took its time."""
        self.reconcile(self._desired)

    async def load(self, hosted: HostedModel) -> None:
        """Load a model beside those that are served; what goes wrong is told, and the others go on."""
        model = hosted.desired.spec.id
        async with self._loading:
            if model not in self._desired or self._models.get(model) is not hosted:
                # Taken away meanwhile, and perhaps asked for anew.
                self._forget(model, hosted)
                await self.loader.stop(hosted)
                return
            started = time.monotonic()
            hosted.wanted = False
            try:
                await self.loader.start(hosted)
            except LOAD_ERRORS as error:
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
            await self.queues.listen(model)
            hosted.become_ready(started)
        # It may have been taken away again meanwhile.
        self.reconcile(self._desired)

    def refuse(self, hosted: HostedModel, reason: str) -> None:
        """Say that a model cannot be loaded, and leave the others as they are."""
        log.error("The model cannot be loaded: %s", reason, extra={"model": hosted.desired.spec.id})
        hosted.wanted = False
        hosted.become(ModelStatus.FAILED, reason)
        self.spawn(self.loader.stop(hosted))
        self.changed.set()

    def forgive(self, hosted: HostedModel) -> None:
        """Let a model that failed be asked for once more."""
        hosted.become(ModelStatus.UNLOADED, hosted.reason)
        self.changed.set()

    async def stop_all(self) -> None:
        """Free every engine, whatever runs."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for hosted in self._models.values():
            await self.loader.stop(hosted)

    def _ask_for(self, hosted: HostedModel) -> None:
        """Load a model: at once, or when it is its turn."""
        if self.on_demand:
            hosted.become(ModelStatus.UNLOADED)
            hosted.wanted = True
        else:
            hosted.become(ModelStatus.LOADING)
            self.spawn(self.load(hosted))

    async def _give_up(self, hosted: HostedModel, reason: str) -> None:
        hosted.loaded = False
        hosted.become(ModelStatus.FAILED, reason)
        self.changed.set()
        await self.loader.stop(hosted)

    async def _drain(self, model: str, hosted: HostedModel) -> None:
        """Take nothing new; once nothing runs any more, free the engine. Ends early when the model is desired again."""
        log.info("Model is drained, as an operator asked", extra={"model": model})
        self.changed.set()
        settled = time.monotonic() + SETTLE_SECONDS
        listens = True
        while time.monotonic() < settled or self.runs(hosted):
            if model in self._desired:
                if listens:
                    hosted.forced = False
                    hosted.become(ModelStatus.READY)
                    self.reconcile(self._desired)
                else:
                    await self.take_back(hosted)
                return
            if hosted.forced:
                self._active_requests.stop_all(StopReason.UNLOADED, model)
            if listens and time.monotonic() >= settled - SETTLE_SECONDS / 2:
                # By now nothing new comes in; what is in the queue of several is for the others.
                listens = False
                await self.queues.ignore(model)
            await asyncio.sleep(LOOK_SECONDS)
        await self.loader.stop(hosted)
        log.info("Model is unloaded", extra={"model": model})
        self._forget(model, hosted)
        self.reconcile(self._desired)

    async def fetch(self, hosted: HostedModel) -> None:
        """Get a model's weights onto this host, before another one gives way for it."""
        try:
            await self.loader.fetch(hosted)
        except LOAD_ERRORS as error:
            self.refuse(hosted, str(error))
        except Exception as error:
            log.exception("The model's weights cannot be fetched", extra={"model": hosted.desired.spec.id})
            self.refuse(hosted, f"{type(error).__name__}; the worker's log has the details")
        else:
            hosted.become(ModelStatus.UNLOADED)
        self.reconcile(self._desired)

    async def take_back(self, hosted: HostedModel) -> None:
        """Let a model that was to go stay."""
        await self.queues.listen(hosted.desired.spec.id)
        hosted.forced = False
        hosted.become(ModelStatus.READY)
        # It may have been taken away again while the queue was joined.
        self.reconcile(self._desired)

    def runs(self, hosted: HostedModel) -> bool:
        return self._active_requests.of_model(hosted.desired.spec.id) > 0

    def _forget(self, model: str, hosted: HostedModel) -> None:
        if self._models.get(model) is hosted:
            del self._models[model]
        self.changed.set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something on the loop until the engines are freed."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
