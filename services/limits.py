"""What a key, and all keys of a tenant, may use: requests a minute and streams at once, over all processes.

Requests are counted by the ``limits`` library (a moving window in Redis). Streams are
leases in a sorted set: a process that dies leaves none behind for longer than the lease.
"""

import functools
import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis.exceptions import RedisError

from services.limit_errors import TooManyRequests, TooManyStreams
from services.limit_holders import DefaultBounds, Holder, holders
from store.principal import Principal
from store.redis import keys as redis_keys

log = logging.getLogger(__name__)

#: How long a stream counts that nobody renews. Milliseconds.
_LEASE_MS = 30_000
#: How often the leases of this process are renewed. Seconds.
_RENEW_SECONDS = 10.0

#: KEYS leases; ARGV limit, lease in ms, request. Returns 1 when the stream may begin.
_ACQUIRE = """
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], ms + ARGV[2], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
#: KEYS leases; ARGV lease in ms, then requests.
_RENEW = """
local now = redis.call('TIME')
local ends = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[1]
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', ends, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""


@dataclass(frozen=True)
class Allowance:
    """What a key may still send."""

    #: Requests a minute, and how many of them are left.
    limit: int
    remaining: int
    #: When there is more again. Unix time, seconds.
    reset: float


class Limits:
    """The limits of one process's requests; the counts are everybody's."""

    def __init__(self, client: Any, default: DefaultBounds) -> None:
        """``default`` is for keys that have no limit of their own."""
        self._default = default
        # Its address is not used, only the pool; the library insists on one that it can read.
        storage = RedisStorage(
            "redis://localhost", connection_pool=client.connection_pool, key_prefix=f"{redis_keys.prefix()}LIMITS"
        )
        self._window = MovingWindowRateLimiter(storage)
        self._redis = client
        self._acquire = client.register_script(_ACQUIRE)
        self._renew = client.register_script(_RENEW)
        self._held: dict[str, set[str]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        threading.Thread(target=self._renew_held, name="leases", daemon=True).start()

    def count_request(self, principal: Principal) -> Allowance | None:
        """Count a request; return what is left, None where there is no limit.

        Raises ``TooManyRequests`` when the key, or its tenant, has had its requests of this minute.
        """
        own, common = principal.bounds, principal.tenant_bounds
        if not (self._default.requests_per_minute or own.requests_per_minute or common.requests_per_minute):
            return None
        limited = [holder for holder in holders(principal, self._default) if holder.requests_per_minute]
        if len(limited) > 1:
            # What the tenant may not is not counted against the key.
            *_, tenant = limited
            if not self._window.test(_a_minute(tenant.requests_per_minute), tenant.id):
                raise self._too_many(tenant)
        least: Allowance | None = None
        for holder in limited:
            item = _a_minute(holder.requests_per_minute)
            if not self._window.hit(item, holder.id):
                raise self._too_many(holder)
            reset, remaining = self._window.get_window_stats(item, holder.id)
            if least is None or remaining < least.remaining:
                least = Allowance(holder.requests_per_minute, remaining, reset)
        return least

    @contextmanager
    def hold_stream(self, principal: Principal, request_id: str) -> Iterator[None]:
        """Hold one of the streams of a key, and of its tenant. Raises ``TooManyStreams`` when one has all it may."""
        if not (self._default.streams or principal.bounds.streams or principal.tenant_bounds.streams):
            yield
            return
        with ExitStack() as stack:
            for holder in holders(principal, self._default):
                if holder.streams:
                    stack.enter_context(self._hold(holder, request_id))
            yield

    def _too_many(self, holder: Holder) -> TooManyRequests:
        reset, _ = self._window.get_window_stats(_a_minute(holder.requests_per_minute), holder.id)
        return TooManyRequests(holder.name, holder.requests_per_minute, reset)

    @contextmanager
    def _hold(self, holder: Holder, request_id: str) -> Iterator[None]:
        name = redis_keys.streams(holder.id)
        # Each connection holds a lease of its own, also to the same request.
        lease = f"{request_id}:{secrets.token_hex(4)}"
        if not self._acquire(keys=[name], args=[holder.streams, _LEASE_MS, lease]):
            raise TooManyStreams(holder.name, holder.streams)
        with self._lock:
            self._held.setdefault(name, set()).add(lease)
        try:
            yield
        finally:
            with self._lock:
                self._held[name].discard(lease)
            try:
                self._redis.zrem(name, lease)
            except (RedisError, OSError) as error:
                log.warning("A stream's lease could not be given back, it lapses: %s", error)

    def close(self) -> None:
        self._stop.set()

    def _renew_held(self) -> None:
        while not self._stop.wait(_RENEW_SECONDS):
            with self._lock:
                held = {name: list(leases) for name, leases in self._held.items() if leases}
            try:
                for name, leases in held.items():
                    self._renew(keys=[name], args=[_LEASE_MS, *leases])
            except (RedisError, OSError) as error:
                log.warning("The leases of streams could not be renewed: %s", error)


@functools.cache
def _a_minute(amount: int) -> RateLimitItemPerMinute:
    return RateLimitItemPerMinute(amount)
