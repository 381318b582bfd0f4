"""The state of the whole system for Prometheus, looked at when it asks: workers, queues, jobs, Redis."""

import logging
import time
from collections import Counter
from collections.abc import Iterator

import redis
from prometheus_client.core import GaugeMetricFamily as Family
from prometheus_client.metrics_core import Metric
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from store.redis import keys as redis_keys
from store.redis.presence import Fleet, PresenceReader
from store.sql.job_counts import JobCounts
from tasks.broker import queues, submit

log = logging.getLogger(__name__)


class SystemState:
    """Collects once for each scrape. What cannot be asked is missing, and ``cy_llm_…_up`` says so."""

    def __init__(self, client: redis.Redis, presence: PresenceReader, jobs: JobCounts) -> None:
        self._redis = client
        self._presence = presence
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; every front door has the same, so take their maximum."""
        yield from self._of_redis()
        yield from self._of_database()

    def _of_redis(self) -> Iterator[Metric]:
        up = Family("cy_llm_redis_up", "Whether Redis answers.")
        try:
            begun = time.perf_counter()
            self._redis.ping()
            latency = time.perf_counter() - begun
            fleet = self._presence.fleet(fresh=True)
            waiting = {queue: queues.pending(self._redis, {queue}) for queue in submit.all_queues(fleet)}
            unbooked = int(self._redis.xlen(redis_keys.bills()))
            memory = self._redis.info("memory")
        except (RedisError, OSError) as error:
            log.warning("Redis cannot be asked for metrics: %s", error)
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield Family("cy_llm_redis_latency_seconds", "A ping to Redis.", value=latency)
        yield Family("cy_llm_redis_memory_bytes", "What Redis uses.", value=memory.get("used_memory", 0))
        yield Family(
            "cy_llm_redis_memory_limit_bytes", "What Redis may use; 0 is all.", value=memory.get("maxmemory", 0)
        )
        yield Family("cy_llm_unbooked_requests", "Requests whose usage is not booked in SQL yet.", value=unbooked)
        waits = Family("cy_llm_queue_depth", "Requests that wait for a worker.", labels=["queue"])
        for queue, count in sorted(waiting.items()):
            waits.add_metric([queue], count)
        yield waits
        yield from _of_fleet(fleet)

    def _of_database(self) -> Iterator[Metric]:
        up = Family("cy_llm_database_up", "Whether the database answers.")
        try:
            counts = self._jobs.counts()
        except SQLAlchemyError as error:
            log.warning("The database cannot be asked for metrics: %s", error.__class__.__name__)
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        for name, text, label, found in (
            ("cy_llm_training_jobs", "Training jobs.", "status", counts.trainings),
            ("cy_llm_batches", "Batches.", "status", counts.batches),
            ("cy_llm_adapters", "Adapters that can be asked for.", "base_model", counts.adapters),
        ):
            family = Family(name, text, labels=[label])
            for value, count in sorted(found.items()):
                family.add_metric([value], count)
            yield family
        step = Family("cy_llm_training_step", "Steps of a training that runs.", labels=["job"])
        steps = Family("cy_llm_training_steps_planned", "Steps that it will have.", labels=["job"])
        loss = Family("cy_llm_training_loss", "Its newest loss.", labels=["job"])
        for job in counts.running:
            step.add_metric([job.id], job.step)
            steps.add_metric([job.id], job.total_steps)
            if job.loss is not None:
                loss.add_metric([job.id], job.loss)
        yield from (step, steps, loss)


def _of_fleet(fleet: Fleet) -> Iterator[Metric]:
    workers = Family("cy_llm_workers", "Workers for inference.", labels=["state"])
    states = Counter(worker.state for worker in fleet.living)
    for state in ("loading", "ready", "draining", "failed"):
        workers.add_metric([state], states[state])
    workers.add_metric(["lost"], len(fleet.lost))
    yield workers
    in_flight = Family("cy_llm_worker_in_flight", "Requests that a worker has taken.", labels=["worker"])
    capacity = Family("cy_llm_worker_capacity", "Requests that a worker takes at once.", labels=["worker"])
    running = Family("cy_llm_engine_running", "Sequences that an engine computes.", labels=["worker", "model"])
    waiting = Family("cy_llm_engine_waiting", "Sequences that wait inside an engine.", labels=["worker", "model"])
    for worker in fleet.living:
        in_flight.add_metric([worker.name], worker.in_flight)
        capacity.add_metric([worker.name], worker.capacity)
        for model, info in worker.models.items():
            running.add_metric([worker.name, model], info.get("running", 0))
            waiting.add_metric([worker.name, model], info.get("waiting", 0))
    yield from (in_flight, capacity, running, waiting)
