"""How many lines of batches may be asked at once: what people leave free."""

import time
from collections import Counter

from store.redis.presence import Fleet, WorkerInfo

#: While somebody is always there, one line is asked after so long, so that batches come to an end. Seconds.
_PATIENCE = 10.0
#: How long nobody must have been there before lines are asked again: who has an answer often asks on. Seconds.
_QUIET = 3.0
#: Of a worker's places one in so many stays free, for who comes first.
_RESERVE = 8


class Slots:
    """The free places of each model's workers. Of one thread."""

    def __init__(self, per_worker: int) -> None:
        self._per_worker = per_worker
        self._taken: Counter[str] = Counter()
        self._last_start: dict[str, float] = {}
        #: When nobody has been there for long enough.
        self._quiet_at: dict[str, float] = {}

    def take(self, model: str) -> None:
        """A line is asked."""
        self._taken[model] += 1
        self._last_start[model] = time.monotonic()

    def give_back(self, model: str) -> None:
        """It was answered, or was stopped."""
        self._taken[model] -= 1

    def note_interactive(self, model: str) -> None:
        """A line was stopped for somebody who waits, and may ask again soon."""
        self._quiet_at[model] = time.monotonic() + _QUIET

    def is_quiet(self, model: str) -> bool:
        """Whether nobody has been there for long enough."""
        return time.monotonic() >= self._quiet_at.get(model, 0.0)

    def free(self, fleet: Fleet, model: str) -> int:
        """Return how many lines may be asked of a model now.

        When nobody is there, as many as each worker takes; as soon as somebody is, none more.
        """
        workers = fleet.serving(model)
        if not workers:
            # A model that is loaded on demand is loaded for one line, and shows then.
            return int(fleet.on_demand(model) and not self._taken[model])
        if any(worker.interactive for worker in workers):
            self.note_interactive(model)
        if not self.is_quiet(model):
            started = self._last_start.setdefault(model, time.monotonic())
            return int(not self._taken[model] and time.monotonic() - started >= _PATIENCE)
        # Its workers' places are those of the other models that they serve, too.
        models = {name for worker in workers for name in worker.models}
        taken = sum(self._taken[name] for name in models)
        return max(0, sum(self._places(worker) for worker in workers) - taken)

    def _places(self, worker: WorkerInfo) -> int:
        capacity = worker.capacity or self._per_worker
        return max(1, min(self._per_worker, capacity - max(1, capacity // _RESERVE)))
