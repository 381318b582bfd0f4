"""redis-py's pools, safe where several threads or tasks meet a change of Sentinel's master.

When a connection learns of a new master, redis-py closes the pool's idle connections, which another
thread may be taking from the pool in that moment: it then works on a connection without a socket
(``TypeError: argument must be an int, or have a fileno() method``). Here what is closed is out of
the pool while it is closed. redis-py's plain pool for threads holds its lock for this instead.
"""

import asyncio
from queue import Empty
from typing import Any

import redis
import redis.asyncio.sentinel
import redis.sentinel

_AsyncPool: Any = redis.asyncio.sentinel.SentinelConnectionPool


class BlockingPool(redis.BlockingConnectionPool):
    """Connections for threads, which wait for one in turn. Fails with ``redis.RedisError`` only."""

    def get_connection(self, *names: Any, **options: Any) -> Any:
        """Return a connection that is open and silent."""
        try:
            pool: Any = super()
            return pool.get_connection(*names, **options)
        except OSError as error:
            # The second look at a connection is not translated: a TLS error comes through.
            raise redis.ConnectionError(f"{error.__class__.__name__}: {error}") from error


class BlockingSentinelPool(redis.sentinel.SentinelConnectionPool, BlockingPool):
    """Connections to whichever server the Sentinels call the master; threads wait for one in turn."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections. Those in use only where ``inuse_connections`` says so."""
        if inuse_connections:
            super().disconnect()
            return
        taken: list[Any] = []
        try:
            # No more than there are: one that is given back meanwhile is checked then.
            for _ in range(self.pool.qsize()):
                taken.append(self.pool.get_nowait())
        except Empty:
            pass
        idle = [connection for connection in taken if connection is not None]
        for _ in range(len(taken) - len(idle)):
            # A place for a new connection: nobody waits for those that are closed.
            self.pool.put_nowait(None)
        for connection in idle:
            try:
                connection.disconnect()
            finally:
                self.pool.put_nowait(connection)


class AsyncSentinelPool(_AsyncPool):
    """The same for the tasks of one loop, which do not wait for each other."""

    _available_connections: list[Any]

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections. Those in use only where ``inuse_connections`` says so."""
        if inuse_connections:
            await super().disconnect()
            return
        idle, self._available_connections = self._available_connections, []
        try:
            await asyncio.gather(*(connection.disconnect() for connection in idle), return_exceptions=True)
        finally:
            # Also of a task that was cancelled: what is not closed yet is found to be so when it is used.
            self._available_connections = idle + self._available_connections
