"""The pools of Redis connections, where a new master is learned of while others take connections."""

import asyncio
import threading
from typing import Any

import pytest
import redis

from store.redis.client import connect, connect_async

_SENTINEL = "sentinel://127.0.0.1:1/0?master_name=mine"
_SECONDS = 10


class _Connection:
    """One that is slow to close, and cannot be used meanwhile."""

    host, port = "127.0.0.1", 1

    def __init__(self) -> None:
        self.closing = threading.Event()
        self.may_close = threading.Event()
        self.is_open = True

    def connect(self) -> None:
        self.is_open = True

    def can_read(self) -> bool:
        assert self.is_open, "taken while it was closed"
        return False

    def disconnect(self) -> None:
        self.is_open = False
        self.closing.set()
        assert self.may_close.wait(_SECONDS)

    def should_reconnect(self) -> bool:
        return False


def test_what_is_closed_is_not_handed_out() -> None:
    pool: Any = connect(_SENTINEL).connection_pool
    connection = _Connection()
    pool.make_connection = lambda: connection
    pool.proxy.master_address = ("127.0.0.1", 1)
    pool.owns_connection = lambda _: True
    pool.release(pool.get_connection())
    closer = threading.Thread(target=pool.disconnect, args=(False,))
    closer.start()
    assert connection.closing.wait(_SECONDS)
    other = _Connection()
    pool.make_connection = lambda: other
    assert pool.get_connection() is other
    connection.may_close.set()
    closer.join(_SECONDS)
    assert pool.get_connection() is connection
    assert pool.pool.qsize() == pool.max_connections - 2


def test_what_is_closed_is_not_handed_to_another_task() -> None:
    class Slow:
        def __init__(self) -> None:
            self.closing, self.may_close = asyncio.Event(), asyncio.Event()

        async def disconnect(self) -> None:
            self.closing.set()
            await self.may_close.wait()

    async def run() -> None:
        pool: Any = connect_async(_SENTINEL).connection_pool
        first, second = Slow(), object()
        pool._available_connections.append(first)
        pool.make_connection = lambda: second
        closer = asyncio.ensure_future(pool.disconnect(inuse_connections=False))
        await first.closing.wait()
        assert pool.get_available_connection() is second
        first.may_close.set()
        await closer
        assert pool.get_available_connection() is first

    asyncio.run(asyncio.wait_for(run(), _SECONDS))


def test_a_broken_socket_is_an_error_of_redis() -> None:
    class Broken(_Connection):
        def can_read(self) -> bool:
            raise OSError("bad record mac")

    pool: Any = connect("redis://127.0.0.1:1").connection_pool
    broken = Broken()
    broken.may_close.set()
    pool.make_connection = lambda: broken
    pool.owns_connection = lambda _: True
    with pytest.raises(redis.ConnectionError, match="bad record mac"):
        pool.get_connection()
    assert pool.pool.qsize() == pool.max_connections
