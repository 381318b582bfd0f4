"""Redis clients. Every call is bounded, so that a Redis that hangs costs a request seconds."""

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

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
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=COMMAND_TIMEOUT_SECONDS,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        socket_timeout=COMMAND_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1, supported_errors=_RETRIED),
    )
    return redis.Redis.from_pool(pool)


def connect_async(url: str, timeout: float | None = 5.0) -> redis.asyncio.Redis:
    """Return a client for one asyncio loop. ``timeout`` None is for blocking reads.

    It never repeats a command by itself: a write may have been carried out before the
    connection broke, and only its writer can find out.
    """
    return redis.asyncio.Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        socket_timeout=timeout,
        retry=AsyncRetry(NoBackoff(), 0),
    )
