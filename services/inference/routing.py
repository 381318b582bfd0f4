"""Which queue a request goes to."""

from dataclasses import dataclass

from engines.model_spec import ModelSpec
from services.errors import ModelNotReady, QueueFull
from store.redis.presence import Fleet, PresenceReader
from tasks.broker import submit
from tasks.broker.queue_depth import QueueDepth


@dataclass(frozen=True)
class Route:
    """Where a request would go, as admitted."""

    fleet: Fleet
    queue: str
    #: Whether the model has to be loaded first, for this request among others.
    loads_first: bool = False


class Router:
    """Chooses queues by who lives and how many wait."""

    def __init__(self, presence: PresenceReader, queue_depth: QueueDepth, max_queue_size: int) -> None:
        self._presence = presence
        self._queue_depth = queue_depth
        self._max_queue_size = max_queue_size

    def route_request(self, spec: ModelSpec, hint: str = "", light: bool = False) -> Route:
        """Choose the queue for a request; a ``light`` one finds room always.

        Raises ``ModelNotReady``, ``QueueFull``, ``redis.RedisError``.
        """
        fleet = self._presence.fleet()
        queue = submit.queue_for(fleet, spec.id, hint)
        if not fleet.serving(spec.id):
            # A worker may have become ready since the list was made.
            fleet = self._presence.fleet(fresh=True)
            queue = submit.queue_for(fleet, spec.id, hint)
        if queue is None:
            failed = fleet.failed_on_demand(spec.id)
            raise ModelNotReady(spec.id, loading=bool(fleet.loading(spec.id)), failed=failed)
        if light:
            return Route(fleet, queue, not fleet.serving(spec.id))
        bound = spec.max_pending or self._max_queue_size
        waiting = self._queue_depth.pending(queue, bound)
        if waiting >= bound:
            raise QueueFull(spec.id, waiting, bound)
        return Route(fleet, queue, not fleet.serving(spec.id))
