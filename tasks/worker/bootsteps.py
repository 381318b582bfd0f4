"""What a ``gpu-infer`` worker does before its first message and after its last.

The engine is loaded before the consumer starts, so no request waits for a model. On
SIGTERM Celery stops its steps in reverse order: consumer, pool (which waits for running
tasks), and only then the engine, because the pool is made to require it.
"""

import asyncio
import gc
import logging
import os
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from celery import bootsteps
from celery.exceptions import WorkerShutdown
from sqlalchemy.exc import SQLAlchemyError

from engines.errors import ConfigError, EngineError, UnknownModel
from engines.model_spec import ModelSpec
from settings import Settings
from store.model_revision import RevisionWatcher
from store.redis.client import connect
from store.sql import db
from store.sql.adapters import AdapterStore
from tasks.broker.names import QUEUE_INFER, is_inference_queue, model_queue, worker_queue
from tasks.worker.caches import prepare_caches
from tasks.worker.celery_internals import disable_acknowledgement, stop_if_asked
from tasks.worker.engine_host import EngineHost
from tasks.worker.heartbeat import Heartbeat
from tasks.worker.installation import EX_UNAVAILABLE
from tasks.worker.models.assignment import ModelAssignment
from tasks.worker.models.hosted import DesiredModel
from tasks.worker.models.queues import ModelQueues

log = logging.getLogger(__name__)


class EngineStep(bootsteps.StartStopStep):
    """Loads the engines, announces the worker, and takes both back at the end."""

    requires = {"celery.worker.components:Timer"}

    def __init__(
        self, worker: Any, gpu: str | None = None, models: str | None = None, swap: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(worker, **kwargs)
        self.enabled = any(is_inference_queue(name) for name in worker.app.amqp.queues.consume_from)
        if not self.enabled:
            return
        if gpu is not None:
            # Before anything touches CUDA: nothing has imported torch yet.
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            log.info("GPUs are pinned", extra={"cuda_visible_devices": os.environ["CUDA_VISIBLE_DEVICES"]})
        self._settings = Settings.from_env_or_exit()
        prepare_caches(os.environ, self._settings.var)
        self._sessions = db.sessions(db.connect(self._settings.database_url))
        if swap and models is None:
            raise SystemExit("cy-llm: --swap needs --models, the models that this worker loads when they are asked for")
        self._host = EngineHost(self._settings, worker.hostname, swap, os.environ.get("CUDA_VISIBLE_DEVICES"))
        try:
            self._desired = self._choose_models(worker, models)
        except (ConfigError, UnknownModel) as error:
            raise SystemExit(f"cy-llm: the worker cannot serve: {error}") from None
        disable_acknowledgement(worker.app)
        self._watcher: RevisionWatcher | None = None
        self._heartbeat: Heartbeat | None = None

    def _choose_models(self, worker: Any, models: str | None) -> dict[str, DesiredModel]:
        named = None if models is None else [name.strip() for name in models.split(",") if name.strip()]
        self._assignment = ModelAssignment(self._settings, self._sessions, worker.hostname)
        started_for, first = self._assignment.begin(named)
        queues = worker.app.amqp.queues
        names = [*queues.consume_from, worker_queue(worker.hostname)]
        if models is not None:
            names = [*(name for name in names if name != QUEUE_INFER), *map(model_queue, self._host.first_of(first))]
        elif not first:
            # Its model was taken away: the common queue is for workers that have theirs.
            names = [name for name in names if name != QUEUE_INFER]
        queues.select(names)
        self._queues = ModelQueues(worker.app, worker.hostname, started_for[0] if models is None else None)
        return first

    def start(self, worker: Any) -> None:
        self._heartbeat = Heartbeat(self._host, list(self._desired), self._queues.names, worker.concurrency)
        self._heartbeat.start()
        loading = self._host.start(self._desired)
        try:
            self._wait(loading)
        except (EngineError, ConfigError) as error:
            log.critical("The worker cannot serve: %s", error)
            self.terminate(worker)
            raise WorkerShutdown(EX_UNAVAILABLE) from error
        loaded = self._host.models.engines()
        for model, each in self._desired.items():
            # Not all that were to be loaded first need have come.
            self._queues.choose(model, listen=model in loaded)
            if model in loaded:
                self._host.run(self._load_adapters(each.spec))
        worker.app.host = self._host
        # What was made while loading stays: the collector need not look through it again and again.
        gc.collect()
        gc.freeze()
        self._heartbeat.ready()
        self._watch_models(self._host)

    def _watch_models(self, host: EngineHost) -> None:
        """From now on, serve what operators say."""
        host.models.queues.queues = self._queues
        host.models.on_ready = self._load_adapters

        def refresh() -> int:
            desired, revision = self._assignment.now()
            host.reconcile(desired)
            return revision

        self._watcher = RevisionWatcher(connect(self._settings.redis_url), refresh)
        self._watcher.start()
        host.begin_swapping()

    async def _load_adapters(self, spec: ModelSpec) -> None:
        """Load what the names of adapters mean now, as many as the engine keeps at once."""
        if not spec.takes_adapters:
            return
        store = AdapterStore(self._sessions, self._settings.adapters_root)
        try:
            found = await asyncio.to_thread(store.current, [spec.id])
        except SQLAlchemyError as error:
            log.warning("The adapters cannot be looked up, each loads at its first use: %s", error.__class__.__name__)
            return
        for adapter in found[: spec.max_loras]:
            await self._host.load_adapter(spec.id, adapter.path)

    @staticmethod
    def _wait(loading: Future[None]) -> None:
        """Wait for the models, but not when the worker was told to stop meanwhile."""
        while True:
            try:
                return loading.result(timeout=0.2)
            except FutureTimeout:
                if loading.done():
                    raise
                stop_if_asked()

    def stop(self, worker: Any) -> None:
        """Let running generations finish, then free everything. Celery takes nothing new any more."""
        self._host.drain()
        self.terminate(worker)

    def terminate(self, worker: Any) -> None:
        if self._watcher is not None:
            self._watcher.close()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._host.stop()

    def info(self, worker: Any) -> dict[str, Any]:
        """Shown by ``celery inspect stats`` and on Flower's worker page."""
        engines = {name: engine.info().to_dict() for name, engine in self._host.models.engines().items()}
        return {"engines": engines, "in_flight": self._host.in_flight, "time": time.time()}
