"""What a ``gpu-train`` worker does beside its tasks."""

import os
import secrets
from typing import Any

import redis
from celery import bootsteps, signals

from engines.errors import ConfigError
from engines.registry import load_registry
from settings import Settings
from store.files.files import FileStore
from store.redis.client import connect
from store.sql import db
from store.sql.adapters import AdapterStore
from store.sql.jobs import JobStore
from tasks.broker import submit
from tasks.broker.names import QUEUE_TRAIN
from tasks.worker.caches import prepare_caches
from tasks.worker.celery_internals import disable_acknowledgement
from tasks.worker.installation import require_installation
from tasks.worker.job_watcher import JobWatcher
from tasks.worker.training.dataset_checker import DatasetCheckThread
from tasks.worker.training.job_runner import JobRunner
from tasks.worker.training.publishing import Publisher


class TrainingContext:
    """What the training task works with."""

    def __init__(self, runner: JobRunner, client: redis.Redis) -> None:
        self.runner = runner
        self.redis = client


class TrainingStep(bootsteps.StartStopStep):
    """Makes the runner, sends forgotten jobs again, and tells the runner when the worker is stopped."""

    requires = {"celery.worker.components:Timer"}

    def __init__(self, worker: Any, gpu: str | None = None, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.enabled = QUEUE_TRAIN in worker.app.amqp.queues.consume_from
        if not self.enabled:
            return
        if gpu is not None:
            # The trainers inherit it.
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        self._settings = Settings.from_env_or_exit()
        # The trainers inherit these too.
        prepare_caches(os.environ, self._settings.var)
        try:
            self._registry = load_registry(self._settings.config_path, **self._settings.registry_options)
        except ConfigError as error:
            raise SystemExit(f"cy-llm: the worker cannot train: {error}") from None
        disable_acknowledgement(worker.app)

    def start(self, worker: Any) -> None:
        settings = self._settings
        sessions = db.sessions(db.connect(settings.database_url))
        jobs = JobStore(sessions)
        client = connect(settings.redis_url)
        require_installation(client, sessions)
        self._watcher = JobWatcher(client, QUEUE_TRAIN, jobs.claimable, submit.enqueue_training)
        runner = JobRunner(
            settings,
            jobs,
            Publisher(
                jobs,
                AdapterStore(sessions, settings.adapters_root),
                FileStore(sessions, settings.files_root),
                self._registry,
            ),
            # A worker that comes back under its old name is another runner.
            f"{worker.hostname}:{secrets.token_hex(4)}",
            self._watcher.stopping,
        )
        worker.app.training = TrainingContext(runner, client)
        signals.worker_shutting_down.connect(self._on_shutting_down)
        self._watcher.start()
        self._checks = DatasetCheckThread(client)
        self._checks.start()

    def _on_shutting_down(self, **_: Any) -> None:
        """The worker was told to stop: what it trains is saved, and handed on."""
        self._watcher.stopping.set()
        self._checks.stop()

    def stop(self, worker: Any) -> None:
        self._checks.stop()
        self._watcher.stop()

    terminate = stop

    def info(self, worker: Any) -> dict[str, Any]:
        """Shown by ``celery inspect stats`` and on Flower's worker page."""
        return {"training": worker.app.training.runner.progress()}
