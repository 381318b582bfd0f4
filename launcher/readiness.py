"""How to tell that a process works."""

from collections.abc import Callable

import redis
from redis.exceptions import RedisError

from configuration.listen_address import listens
from store.redis.presence import PresenceReader

#: A process that tells nothing of itself counts as ready when it has run this long. Seconds.
_SETTLED_SECONDS = 8.0


def when_listening(host: str, *ports: int) -> Callable[[float], bool]:
    """Ready when all of the ports are listened on."""
    return lambda _elapsed: all(listens(host, port) for port in ports)


def when_settled(elapsed: float) -> bool:
    """Ready when it has not ended for some seconds."""
    return elapsed >= _SETTLED_SECONDS


class WhenServing:
    """Ready when a worker of that name serves the model, one that did not before this start."""

    def __init__(self, client: redis.Redis, worker: str, model: str) -> None:
        self._presence = PresenceReader(client)
        self._worker = worker
        self._model = model
        self._earlier: set[str] = set()
        self._elapsed = 0.0

    def __call__(self, elapsed: float) -> bool:
        try:
            serving = {w.instance_id for w in self._presence.fleet(fresh=True).serving(self._model)}
        except (RedisError, OSError):
            return False
        if elapsed < self._elapsed or not self._elapsed:
            # A new start: the record of the one before lives on for a moment.
            self._earlier = serving
        self._elapsed = elapsed
        return any(i.rpartition(":")[0].startswith(self._worker) for i in serving - self._earlier)
