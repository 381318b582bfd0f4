"""The thread in which a worker tells that it lives, watches its engines, and times its drain."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import signals
from redis.exceptions import RedisError

from store.redis.client import connect
from store.redis.presence import RENEW_SECONDS, PresenceAnnouncer, State, WorkerInfo
from tasks.worker.engine_host import EngineHost

log = logging.getLogger(__name__)


class Heartbeat:
    """Renews the worker's presence every second until :meth:`stop`."""

    def __init__(self, host: EngineHost, models: list[str], queues: Callable[[], list[str]], capacity: int) -> None:
        self._host = host
        self._models = models
        self._queues = queues
        self._capacity = capacity
        self._announcer = PresenceAnnouncer(connect(host.settings.redis_url))
        self._state = State.LOADING
        self._drain_ends: float | None = None
        self._changed = host.state_changed
        self._stopped = False
        self._lost_redis = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        signals.worker_shutting_down.connect(self._on_shutting_down)
        self._thread.start()

    def ready(self) -> None:
        """The models are loaded: requests may come."""
        if self._state == State.LOADING:
            self._state = State.READY
        self._changed.set()

    def stop(self) -> None:
        """Take leave and end the thread."""
        self._stopped = True
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        try:
            self._announcer.withdraw(self._host.instance_id)
        except RedisError as error:
            log.warning("Could not take leave, the worker will be listed as lost: %s", error)

    def _on_shutting_down(self, **_: Any) -> None:
        # Inside a signal handler: only note it, the thread acts.
        if self._drain_ends is None:
            self._drain_ends = time.monotonic() + self._host.settings.drain
            self._host.begin_stopping()
        if self._state != State.FAILED:
            self._state = State.DRAINING
        self._changed.set()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._watch_engines()
                self._watch_drain()
                self._renew()
            except Exception:
                # Without this thread a healthy worker would be taken for dead.
                log.exception("The heartbeat failed")
            self._changed.wait(RENEW_SECONDS)
            self._changed.clear()

    def _watch_engines(self) -> None:
        if self._state in (State.READY, State.DRAINING) and (dead := self._host.dead_engines()):
            log.critical("The engine of %s is dead, the worker stops so that it can be replaced", ", ".join(dead))
            self._state = State.FAILED
            os.kill(os.getpid(), signal.SIGTERM)

    def _watch_drain(self) -> None:
        if self._drain_ends is not None and time.monotonic() >= self._drain_ends and not self._host.releasing:
            if self._host.in_flight:
                log.warning("The drain time is over, %d requests are handed over", self._host.in_flight)
            self._host.release_all()

    def _renew(self) -> None:
        try:
            self._announcer.renew(self._info())
        except (RedisError, OSError) as error:
            if not self._lost_redis:
                log.warning("Redis is away, presence cannot be renewed: %s", error)
            self._lost_redis = True
        else:
            self._lost_redis = False

    def _info(self) -> WorkerInfo:
        # While it loads a worker names its models, so that a client can be told to wait.
        hosted = self._host.models
        models: dict[str, dict[str, Any]] = {}
        if self._state == State.LOADING:
            models = {model: {} for model in self._models}
        models.update({name: engine.info().to_dict() for name, engine in hosted.serving().items()})
        background, interactive = self._host.active_requests.count()
        return WorkerInfo(
            name=self._host.worker_name,
            instance_id=self._host.instance_id,
            state=self._state,
            queues=self._queues(),
            models=models,
            model_states=hosted.describe(),
            in_flight=self._host.in_flight,
            background=background,
            interactive=interactive,
            capacity=self._capacity,
        )
