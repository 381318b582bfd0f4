"""How every process learns of a change of the models: a number in Redis that it looks at once a second.

The truth is in SQL. A Redis that was flushed, or a process that died between writing and telling, costs a few
seconds: the number is made anew from SQL, which is asked itself now and then.
"""

import logging
import threading
import time
from collections.abc import Callable

import redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from store.redis import keys as redis_keys

log = logging.getLogger(__name__)

#: How often a process looks. Seconds; wanted is that a change is seen everywhere within two.
LOOK_SECONDS = 0.5
#: How often SQL is asked whatever Redis says. Seconds.
_ASK_SECONDS = 30.0


def publish(client: redis.Redis, revision: int) -> None:
    """Tell all processes that there is something new. Raises ``redis.RedisError``."""
    client.set(redis_keys.models_revision(), revision)


class RevisionWatcher:
    """Calls ``refresh`` in a thread of its own whenever the models have changed.

    ``refresh`` reads SQL and returns the revision that it found; what the stores raise is tried again.
    """

    def __init__(
        self, client: redis.Redis, refresh: Callable[[], int], beside: Callable[[], None] = lambda: None
    ) -> None:
        """``beside`` is called with each look, in the same thread: what else is looked for so often."""
        self._client = client
        self._beside = beside
        self._refresh = refresh
        self._seen: int | None = None
        self._asked = 0.0
        self._complained = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def start(self, seen: int | None = None) -> None:
        """``seen`` is the revision that the caller has read already."""
        self._seen = seen
        self._asked = time.monotonic() if seen is not None else 0.0
        self._thread.start()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            try:
                self._beside()
                self._look()
                self._complained = False
            except (RedisError, OSError, SQLAlchemyError) as error:
                if not self._complained:
                    log.warning("Changes of the models cannot be looked up now: %s", error.__class__.__name__)
                self._complained = True
            except Exception:
                # The thread must outlive any fault: without it no change is seen.
                log.exception("A change of the models could not be taken in")

    def _look(self) -> None:
        published = self._client.get(redis_keys.models_revision())
        now = time.monotonic()
        fresh = published is not None and self._seen is not None and int(published) == self._seen
        if fresh and now - self._asked < _ASK_SECONDS:
            return
        self._seen = self._refresh()
        self._asked = now
        if published is None or int(published) != self._seen:
            publish(self._client, self._seen)
