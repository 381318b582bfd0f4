"""What a process does about API keys beside its calls: sees that they were changed, and notes that they were used.

A change is told by a number in Redis that each process looks at; what was remembered of keys is forgotten then. It is
a short cut: what is remembered is believed for a second in any case.
"""

import logging
import time

import redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from store.redis import keys as redis_keys
from store.sql.api_keys import ApiKeyStore
from store.sql.authenticator import ApiKeyAuthenticator

log = logging.getLogger(__name__)

#: How often what was used is written. Seconds.
_WRITE_SECONDS = 5.0


def announce(client: redis.Redis) -> bool:
    """Tell all processes that keys, or tenants, were changed; whether they could be told."""
    try:
        client.incr(redis_keys.keys_revision())
    except (RedisError, OSError):
        return False
    return True


class KeyWatch:
    """Looks and writes for one process. Whoever looks for other changes calls :meth:`look`, twice a second."""

    def __init__(self, client: redis.Redis, authenticator: ApiKeyAuthenticator, store: ApiKeyStore) -> None:
        self._client = client
        self._authenticator = authenticator
        self._store = store
        self._seen: object = None
        self._written_at = time.monotonic()

    def look(self) -> None:
        """Take in what was changed; now and then, write what was used."""
        try:
            found = self._client.get(redis_keys.keys_revision())
        except (RedisError, OSError):
            log.debug("Changes of keys are seen a little later, Redis is away")
        else:
            if found != self._seen:
                self._seen = found
                self._authenticator.forget()
        if time.monotonic() - self._written_at >= _WRITE_SECONDS:
            self._write()

    def close(self) -> None:
        """Write what is left."""
        self._write()

    def _write(self) -> None:
        self._written_at = time.monotonic()
        used = self._authenticator.take_used()
        if not used:
            return
        try:
            self._store.note_use(used)
        except SQLAlchemyError as error:
            # The next use is noted again.
            log.warning("When keys were used cannot be written now: %s", error.__class__.__name__)
