"""How many sequences an engine is running, as its scheduler reports them."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry
from vllm.config import VllmConfig

from engines.vllm.internals import IterationStats, SchedulerStats, StatLoggerBase


class LoadStats:
    """The last report of the scheduler, and the largest batch it ever ran."""

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.peak_running = 0
        #: What vLLM counts of the engine.
        self.metrics: CollectorRegistry | None = None

    def factory(self) -> Callable[[VllmConfig, int], StatLoggerBase]:
        """Return what vLLM calls to make a stat logger that reports here."""

        def make(config: VllmConfig, index: int = 0) -> StatLoggerBase:
            return _LoadLogger(self)

        return make

    def update(self, running: int, waiting: int) -> None:
        self.running, self.waiting = running, waiting
        self.peak_running = max(self.peak_running, running)


class _LoadLogger(StatLoggerBase):
    def __init__(self, load: LoadStats) -> None:
        self._load = load

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self._load.update(scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs)

    def log_engine_initialized(self) -> None:
        """Part of vLLM's contract; the engine's own log lines tell this already."""
