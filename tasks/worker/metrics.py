"""A worker's own metrics: what it served, and what its engines count, each with the worker's name."""

import logging
from typing import Any

from celery import bootsteps
from prometheus_client import Counter
from prometheus_client.registry import REGISTRY

from settings import Settings
from store.redis.client import connect
from store.redis.metrics_targets import Announcement
from telemetry.exposition import Collects, Labelled
from telemetry.server import MetricsServer

log = logging.getLogger(__name__)

SERVED = Counter("cy_llm_worker_requests", "Attempts that this worker closed, by how.", ["model", "outcome"])


class MetricsStep(bootsteps.StartStopStep):
    """Shows the metrics on a port of the worker's own, where one is set."""

    requires = {"celery.worker.components:Timer"}

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._settings = Settings.from_env_or_exit()
        self.enabled = bool(self._settings.metrics_port)
        self._server: MetricsServer | None = None
        self._announcement: Announcement | None = None

    def start(self, worker: Any) -> None:
        settings = self._settings

        def sources() -> list[Collects]:
            host = getattr(worker.app, "host", None)
            engines = [] if host is None else host.models.engines().values()
            found = [engine.metrics for engine in engines if engine.metrics is not None]
            return [Labelled(source, "worker", worker.hostname) for source in (REGISTRY, *found)]

        try:
            self._server = MetricsServer(settings.metrics_host, settings.metrics_port, sources)
        except OSError as error:
            # A worker that serves is worth more than its numbers.
            log.error("The metrics cannot be shown on port %d or one behind it: %s", settings.metrics_port, error)
            return
        self._server.start()
        client = connect(settings.redis_url)
        self._announcement = Announcement(client, "worker", worker.hostname, self._server.address)
        self._announcement.start()

    def stop(self, worker: Any) -> None:
        self.terminate(worker)

    def terminate(self, worker: Any) -> None:
        if self._announcement is not None:
            self._announcement.close()
            self._announcement = None
        if self._server is not None:
            self._server.close()
            self._server = None
