"""What a ``gpu-train`` worker does beside its tasks: it sees to it that no job is forgotten.

The database is the truth, the queue only wakes: a job whose message was lost (Redis was
flushed, a host rebooted) or whose runner is gone is sent again.
"""

import logging
import os
import secrets
import threading
from typing import Any

import redis
from celery import bootsteps, signals
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from engines.registry import load_registry
from settings import Settings
from store import db
from store.adapters import AdapterStore
from store.jobs import JobStore
from store.redis import connect
from tasks import queues
from tasks.job_runner import JobRunner
from tasks.names import QUEUE_TRAIN

log = logging.getLogger(__name__)

#: How often the jobs are looked through. Seconds.
LOOK_SECONDS = 2.0


class Trainers:
    """What the training task works with."""

    def __init__(self, runner: JobRunner, redis_client: redis.Redis) -> None:
        self.runner = runner
        self.redis = redis_client


class TrainingStep(bootsteps.StartStopStep):
    """Sends forgotten jobs again while the worker runs; tells the runner when it is stopped."""

    requires = {"celery.worker.components:Timer"}

    def __init__(self, worker: Any, gpu: str | None = None, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.enabled = QUEUE_TRAIN in worker.app.amqp.queues.consume_from
        if not self.enabled:
            return
        if gpu is not None:
            # The trainers inherit it.
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        for queue in worker.app.amqp.queues.consume_from.values():
            queue.no_ack = True
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="job-keeper", daemon=True)

    def start(self, worker: Any) -> None:
        self._app = worker.app
        settings = Settings.from_env()
        sessions = db.sessions(db.connect(settings.database_url))
        self._jobs = JobStore(sessions)
        self._adapters = AdapterStore(sessions, settings.adapters_root)
        self._redis = connect(settings.redis_url)
        self._sweep_after = settings.request_timeout + settings.stream_ttl
        registry = load_registry(settings.config_path, settings.engine)
        # A worker that comes back under its old name is another runner.
        name = f"{worker.hostname}:{secrets.token_hex(4)}"
        runner = JobRunner(settings, self._jobs, self._adapters, registry, name, self._stopping)
        worker.app.trainers = Trainers(runner, self._redis)
        signals.worker_shutting_down.connect(self._on_shutting_down)
        self._thread.start()

    def _on_shutting_down(self, **_: Any) -> None:
        """The worker was told to stop: what it trains is saved, and handed on."""
        self._stopping.set()

    def stop(self, worker: Any) -> None:
        self._stopping.set()
        self._thread.join(timeout=5)

    terminate = stop

    def _look_after(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self._send_forgotten()
                self._sweep()
            except (RedisError, OSError, SQLAlchemyError) as error:
                log.warning("The jobs cannot be looked through now: %s", error.__class__.__name__)
            except Exception:
                # The thread must outlive any fault: without it a lost job stays lost.
                log.exception("The keeper of the jobs failed")

    def _send_forgotten(self) -> None:
        jobs = self._jobs.claimable()
        waiting = queues.waiting_ids(self._redis, [QUEUE_TRAIN], jobs) if jobs else set()
        for job_id in jobs:
            if job_id not in waiting:
                log.info("A job without a runner is sent again", extra={"job_id": job_id})
                queues.send_training(self._app, job_id)

    def _sweep(self) -> None:
        for swept in self._adapters.sweep(self._sweep_after):
            log.info("The folder of a deleted adapter is removed", extra={"adapter": swept})
