"""Redis clients. Every call is bounded, so that a Redis that hangs costs a request seconds."""

from typing import Any

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from configuration.redis_address import RedisAddress, parse_redis
from store.redis.pools import AsyncSentinelPool, BlockingPool, BlockingSentinelPool

#: Seconds. The front door must answer within two when Redis is gone.
CONNECT_TIMEOUT_SECONDS = 1.0
COMMAND_TIMEOUT_SECONDS = 1.5
#: Connections of one process; a command takes well under a millisecond, so few serve many threads.
MAX_CONNECTIONS = 64
#: Not a timeout: it has cost its time already, and may have been carried out.
_RETRIED = (redis.exceptions.ConnectionError,)


def connect(url: str) -> redis.Redis:
    """Return a client for threads. A call fails after at most one reconnect, never later than a few seconds.

    One retry only: it mends a connection that Redis closed while it lay in the pool. More threads
    than connections wait for one in turn, with the same bound: a burst of requests is no fault.
    """
    pool = _pool(
        parse_redis(url),
        BlockingPool,
        BlockingSentinelPool,
        max_connections=MAX_CONNECTIONS,
        timeout=COMMAND_TIMEOUT_SECONDS,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        socket_timeout=COMMAND_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1, supported_errors=_RETRIED),
    )
    return redis.Redis.from_pool(pool)


def connection_pool(url: str, **options: Any) -> redis.ConnectionPool:
    """Return a pool to make single connections from; ``options`` are redis-py's."""
    return _pool(parse_redis(url), redis.ConnectionPool, redis.sentinel.SentinelConnectionPool, **options)


def connect_async(url: str, timeout: float | None = 5.0) -> redis.asyncio.Redis:
    """Return a client for one asyncio loop. ``timeout`` None is for blocking reads.

    It never repeats a command by itself: a write may have been carried out before the
    connection broke, and only its writer can find out.
    """
    address = parse_redis(url)
    options: dict[str, Any] = {
        **address.redis_options(),
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "socket_timeout": timeout,
        "retry": AsyncRetry(NoBackoff(), 0),
    }
    if address.sentinels:
        sentinels: Any = redis.asyncio.sentinel.Sentinel
        sentinel = sentinels(address.sentinels, sentinel_kwargs=address.sentinel_options())
        if address.tls:
            options["ssl"] = True
        pool: Any = AsyncSentinelPool(address.master_name, sentinel, **options)
    else:
        connections: Any = redis.asyncio.UnixDomainSocketConnection if address.socket else redis.asyncio.Connection
        pool = redis.asyncio.ConnectionPool(
            connection_class=redis.asyncio.SSLConnection if address.tls else connections, **options
        )
    return redis.asyncio.Redis.from_pool(pool)


def _pool(
    address: RedisAddress,
    plain: type[redis.ConnectionPool],
    of_sentinel: Any,
    **options: Any,
) -> redis.ConnectionPool:
    options |= address.redis_options()
    if address.sentinels:
        sentinels: Any = redis.sentinel.Sentinel
        sentinel = sentinels(address.sentinels, sentinel_kwargs=address.sentinel_options())
        if address.tls:
            options["ssl"] = True
        pool: redis.ConnectionPool = of_sentinel(address.master_name, sentinel, **options)
        return pool
    connections: Any = redis.UnixDomainSocketConnection if address.socket else redis.Connection
    return plain(connection_class=redis.SSLConnection if address.tls else connections, **options)
