"""Gets a model's weights, starts its engine, puts it to sleep, wakes it, and frees it."""

import logging
import threading
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.base import Engine, create_engine, require_known_engine
from engines.errors import ConfigError, EngineError
from engines.memory import host_memory_free
from engines.model_spec import ModelSpec
from engines.models.weights import get_weights
from engines.shares import weights_bytes
from settings import child_environment
from store.redis.presence import ModelStatus
from tasks.worker.models.hosted import HostedModel

log = logging.getLogger(__name__)

#: Host memory that is left to others when weights are moved there. Bytes.
_HOST_RESERVE = 2 * 2**30


class ModelLoader:
    """The engines' side of hosting. All methods run on the engines' loop."""

    def __init__(self, changed: threading.Event, models_root: Path, sleeps: bool) -> None:
        """``models_root`` is where models of the package index are kept; ``sleeps``: whether engines shall be started
        such that they can be put to sleep."""
        #: Set when something changed that the worker's presence tells.
        self._changed = changed
        self._models_root = models_root
        self._sleeps = sleeps

    async def start(self, hosted: HostedModel) -> None:
        """Load a model's engine, or wake it. Raises ``EngineError``, ``ConfigError``."""
        if hosted.engine is not None and await self._wake(hosted, hosted.engine):
            return
        spec = hosted.fetched or await self.fetch(hosted)
        hosted.become(ModelStatus.LOADING)
        self._changed.set()
        log.info("Loading model", extra={"model": spec.id, "engine": spec.engine})
        hosted.engine = create_engine(replace(spec, sleep_mode=self._sleeps and spec.sleep_mode is not False))
        await hosted.engine.start()
        hosted.loaded = True
        limit = hosted.engine.info().max_model_len
        log.info("Model is loaded", extra={"model": spec.id, "engine": spec.engine, "max_model_len": limit})

    async def fetch(self, hosted: HostedModel) -> ModelSpec:
        """Return the model with its weights on this host. Raises ``EngineError``, ``ConfigError``."""
        spec = hosted.desired.spec
        # Before anything is fetched for it.
        require_known_engine(spec)
        found = spec if spec.engine == "fake" else await self._get_weights(spec, hosted)
        if hosted.desired.spec is spec:
            hosted.fetched = found
        return found

    async def rest(self, hosted: HostedModel, may_sleep: bool) -> None:
        """Free the memory of a model that nothing runs on: it sleeps where it can and may, else its engine stops."""
        engine, model = hosted.engine, hosted.desired.spec.id
        hosted.loaded = False
        sleeps = may_sleep and engine is not None and engine.can_sleep and not engine.dead
        if sleeps and engine is not None and self._host_has_room(hosted.spec):
            try:
                await engine.sleep()
            except EngineError as error:
                log.warning("The model cannot be put to sleep and is unloaded: %s", error, extra={"model": model})
            else:
                log.info("Model is asleep", extra={"model": model})
                hosted.become(ModelStatus.ASLEEP)
                return
        await self.stop(hosted)
        hosted.become(ModelStatus.UNLOADED)
        log.info("Model is unloaded", extra={"model": model})

    def stop(self, hosted: HostedModel) -> Coroutine[Any, Any, None]:
        """Free a model's engine, which the model has not any more when this returns; to be awaited.

        One that does not end well must not keep its model from being loaded again.
        """
        engine, hosted.engine, hosted.loaded = hosted.engine, None, False
        return self._stop(engine, hosted.desired.spec.id)

    @staticmethod
    async def _stop(engine: Engine | None, model: str) -> None:
        if engine is None:
            return
        try:
            await engine.stop()
        except Exception:
            log.exception("The engine did not end well", extra={"model": model})

    async def _wake(self, hosted: HostedModel, engine: Engine) -> bool:
        """Wake a sleeping engine; False where it has to be started anew."""
        model = hosted.desired.spec.id
        hosted.become(ModelStatus.LOADING)
        self._changed.set()
        if not engine.dead:
            try:
                await engine.wake()
            except EngineError as error:
                log.warning("The model cannot be woken and is loaded anew: %s", error, extra={"model": model})
            else:
                hosted.loaded = True
                log.info("Model is awake", extra={"model": model})
                return True
        await self.stop(hosted)
        return False

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

    @staticmethod
    def _host_has_room(spec: ModelSpec) -> bool:
        """Whether the host's memory can take the weights of a model that is put to sleep."""
        if spec.engine == "fake":
            return True
        weights = weights_bytes(spec)
        return weights is not None and host_memory_free() >= weights + _HOST_RESERVE


#: What loading may raise that is the model's own fault, or its machine's.
LOAD_ERRORS = (EngineError, ConfigError)
