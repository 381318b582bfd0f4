"""What one key may use, counted over all processes."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import redis

from launcher.redis_server import RedisServer
from services.errors import TooManyRequests, TooManyStreams
from services.limits import Limits
from store.redis import keys


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def limits(client: redis.Redis, server: RedisServer, closing: ExitStack, rate: int = 0, streams: int = 0) -> Limits:
    made = Limits(client, rate, streams)
    closing.callback(made.close)
    return made


def test_zero_is_no_limit(redis_client: redis.Redis, redis_server: RedisServer, closing: ExitStack) -> None:
    free = limits(redis_client, redis_server, closing)
    for number in range(50):
        free.count_request("k")
        closing.enter_context(free.hold_stream("k", f"gen-{number}"))
    assert redis_client.dbsize() == 0


def test_the_rate_is_a_keys_over_all_processes(
    redis_client: redis.Redis, redis_server: RedisServer, closing: ExitStack
) -> None:
    first, second = (limits(redis_client, redis_server, closing, rate=3) for _ in range(2))
    for each in (first, second, first):
        each.count_request("k")
    with pytest.raises(TooManyRequests, match="3 requests a minute") as refused:
        second.count_request("k")
    assert 1 <= (refused.value.retry_after or 0) <= 60
    second.count_request("another")


def test_streams_are_given_back_however_they_end(
    redis_client: redis.Redis, redis_server: RedisServer, closing: ExitStack
) -> None:
    first, second = (limits(redis_client, redis_server, closing, streams=1) for _ in range(2))
    with pytest.raises(ZeroDivisionError), first.hold_stream("k", "gen-1"):
        with pytest.raises(TooManyStreams), second.hold_stream("k", "gen-2"):
            pytest.fail("two streams where one is allowed")
        with second.hold_stream("another", "gen-3"):
            raise ZeroDivisionError
    with second.hold_stream("k", "gen-4"):
        assert redis_client.zcard(keys.streams("k")) == 1
    assert redis_client.zcard(keys.streams("k")) == 0


def test_two_connections_to_one_request_count_twice(
    redis_client: redis.Redis, redis_server: RedisServer, closing: ExitStack
) -> None:
    two = limits(redis_client, redis_server, closing, streams=2)
    with two.hold_stream("k", "gen-1"):
        with two.hold_stream("k", "gen-1"), pytest.raises(TooManyStreams), two.hold_stream("k", "gen-1"):
            pytest.fail("three streams where two are allowed")
        assert redis_client.zcard(keys.streams("k")) == 1


def test_exactly_as_many_as_allowed_begin_at_once(
    redis_client: redis.Redis, redis_server: RedisServer, closing: ExitStack
) -> None:
    four = limits(redis_client, redis_server, closing, streams=4)
    together, results = threading.Barrier(12), []
    release = threading.Event()

    def try_it(number: int) -> None:
        together.wait(10)
        try:
            with four.hold_stream("k", f"gen-{number}"):
                results.append(True)
                release.wait(10)
        except TooManyStreams:
            results.append(False)
        if len(results) == 12:
            release.set()

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(results) == [False] * 8 + [True] * 4
