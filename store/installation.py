"""Which installation uses a prefix in Redis. An installation is who shares a database.

Two installations under one prefix would serve each other's requests and obey each other's commands. Each claims
its prefix; the claim is renewed by its front doors, training and background workers, and a second one is told so
at its start.
"""

import logging
import secrets
import threading
import time

import redis
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from store.errors import StoreError
from store.redis import keys as redis_keys
from store.sql.tables import Installation

log = logging.getLogger(__name__)

#: How long a prefix is claimed that nobody renews. Seconds.
CLAIM_SECONDS = 60
#: How often a process renews it. Seconds.
_RENEW_SECONDS = 15.0
#: How often the same trouble is logged. Seconds.
_QUIET_SECONDS = 60.0

#: KEYS the claim; ARGV our id, seconds. Returns whose the prefix is.
_CLAIM = """
local owner = redis.call('GET', KEYS[1])
if not owner or owner == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
    return ARGV[1]
end
return owner
"""


class PrefixTakenError(StoreError):
    """Another installation uses the prefix."""

    def __init__(self) -> None:
        prefix = redis_keys.prefix()
        super().__init__(
            f"another installation (with another database) uses this Redis with CY_LLM_REDIS_PREFIX '{prefix}'. "
            "Give this one a prefix of its own, or the same DATABASE_URL if it shall be the same installation; "
            f"a claim lapses {CLAIM_SECONDS} seconds after its last process has ended"
        )


class InstallationClaim:
    """One process's part in holding the prefix. Raises what the stores raise, unless said otherwise."""

    def __init__(self, client: redis.Redis, sessions: sessionmaker[Session]) -> None:
        self._claim = client.register_script(_CLAIM)
        self._sessions = sessions
        self._id = ""
        self._complained = -_QUIET_SECONDS
        self._closed = threading.Event()

    def hold(self) -> None:
        """As :meth:`require`, and from then on in a thread of its own: nothing else waits for the database or Redis."""
        self.require()
        threading.Thread(target=self._renew_until_closed, name="installation", daemon=True).start()

    def close(self) -> None:
        """Renew it no more."""
        self._closed.set()

    def _renew_until_closed(self) -> None:
        while not self._closed.wait(_RENEW_SECONDS):
            self.renew()

    def require(self) -> None:
        """Claim the prefix, at the start of a process. Raises ``PrefixTakenError``.

        Where Redis or the database is away nothing can be claimed yet; :meth:`renew` does it later.
        """
        try:
            self._hold()
        except (RedisError, OSError, SQLAlchemyError) as error:
            log.warning("The prefix in Redis cannot be claimed now: %s", error.__class__.__name__)

    def renew(self) -> None:
        """Hold the prefix on. Logs what stands in the way; raises nothing."""
        now = time.monotonic()
        try:
            self._hold()
        except PrefixTakenError as error:
            if now - self._complained >= _QUIET_SECONDS:
                self._complained = now
                log.error("Two installations share a prefix: %s", error)
        except (RedisError, OSError, SQLAlchemyError) as error:
            log.debug("The prefix in Redis cannot be claimed now: %s", error.__class__.__name__)

    def _hold(self) -> None:
        self._id = self._id or installation_id(self._sessions)
        owner = self._claim(keys=[redis_keys.installation()], args=[self._id, CLAIM_SECONDS])
        if (owner.decode() if isinstance(owner, bytes) else owner) != self._id:
            raise PrefixTakenError


def forget_claim(client: redis.Redis) -> None:
    """Free the prefix, for whoever alone owns the Redis. Raises ``redis.RedisError``."""
    client.delete(redis_keys.installation())


def installation_id(sessions: sessionmaker[Session]) -> str:
    """Return the id that the database holds; made at the first call."""
    with sessions.begin() as session:
        found = session.scalar(select(Installation.id).where(Installation.number == 1))
        if found is None:
            found = secrets.token_hex(16)
            session.add(Installation(number=1, id=found))
    return found
