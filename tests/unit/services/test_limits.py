"""What one key may use, counted over all processes."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import redis

from launcher.redis_server import RedisServer
from services.limit_errors import TooManyRequests, TooManyStreams
from services.limit_holders import DefaultBounds
from services.limits import Limits
from store.principal import Bounds, Principal
from store.redis import keys

K = Principal("k", "one", tenant="acme")
ANOTHER = Principal("another", "two", tenant="acme")


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def limits(client: redis.Redis, server: RedisServer, closing: ExitStack, rate: int = 0, streams: int = 0) -> Limits:
    made = Limits(client, DefaultBounds(rate, streams))
    closing.callback(made.close)
    return made


def test_zero_is_no_limit(redis_client: redis.Redis, redis_server: RedisServer, closing: ExitStack) -> None:
    free = limits(redis_client, redis_server, closing)
    for number in range(50):
        free.count_request(K)
        closing.enter_context(free.hold_stream(K, f"gen-{number}"))
    assert redis_client.dbsize() == 0


def test_the_rate_is_a_keys_over_all_processes(
    redis_client: redis.Redis, redis_server: RedisServer, closing: ExitStack
) -> None:
    first, second = (limits(redis_client, redis_server, closing, rate=3) for _ in range(2))
    for each in (first, second, first):
        each.count_request(K)
    with pytest.raises(TooManyRequests, match="3 requests a minute") as refused:
        second.count_request(K)
    assert 1 <= (refused.value.retry_after or 0) <= 60
    second.count_request(ANOTHER)


def test_streams_are_given_back_however_they_end(
    redis_client: redis.Redis, redis_server: RedisServer, closing: ExitStack
) -> None:
    first, second = (limits(redis_client, redis_server, closing, streams=1) for _ in range(2))
    with pytest.raises(ZeroDivisionError), first.hold_stream(K, "gen-1"):
        with pytest.raises(TooManyStreams), second.hold_stream(K, "gen-2"):
            pytest.fail("two streams where one is allowed")
        with second.hold_stream(ANOTHER, "gen-3"):
            raise ZeroDivisionError
    with second.hold_stream(K, "gen-4"):
        assert redis_client.zcard(keys.streams("k")) == 1
    assert redis_client.zcard(keys.streams("k")) == 0


def test_two_connections_to_one_request_count_twice(
    redis_client: redis.Redis, redis_server: RedisServer, closing: ExitStack
) -> None:
    two = limits(redis_client, redis_server, closing, streams=2)
    with two.hold_stream(K, "gen-1"):
        with two.hold_stream(K, "gen-1"), pytest.raises(TooManyStreams), two.hold_stream(K, "gen-1"):
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
            with four.hold_stream(K, f"gen-{number}"):
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


def test_a_keys_own_limits_count_instead_of_the_installations(
    redis_client: redis.Redis, redis_server: RedisServer, closing: ExitStack
) -> None:
    two = limits(redis_client, redis_server, closing, rate=2, streams=1)
    generous = Principal("generous", "g", bounds=Bounds(requests_per_minute=3, streams=2))
    endless = Principal("endless", "e", bounds=Bounds(requests_per_minute=0, streams=0))
    remaining = [allowance.remaining for allowance in (two.count_request(generous) for _ in range(3)) if allowance]
    assert remaining == [2, 1, 0]
    with pytest.raises(TooManyRequests, match="This API key may send 3 requests a minute"):
        two.count_request(generous)
    for number in range(5):
        assert two.count_request(endless) is None
        closing.enter_context(two.hold_stream(endless, f"gen-{number}"))
    for number in range(2):
        closing.enter_context(two.hold_stream(generous, f"gen-{number}"))
    with pytest.raises(TooManyStreams, match="This API key may have 2"), two.hold_stream(generous, "gen-9"):
        pytest.fail("three streams where two are allowed")


def test_the_keys_of_a_tenant_share_its_limits(
    redis_client: redis.Redis, redis_server: RedisServer, closing: ExitStack
) -> None:
    free = limits(redis_client, redis_server, closing)
    shared = Bounds(requests_per_minute=3, streams=1)
    first, second = (
        Principal(name, name, tenant="acme", bounds=own, tenant_bounds=shared)
        for name, own in (("k1", Bounds(requests_per_minute=2)), ("k2", Bounds()))
    )
    stranger = Principal("k3", "k3", tenant="elsewhere", tenant_bounds=shared)
    free.count_request(first)
    for _ in range(2):
        free.count_request(second)
    with pytest.raises(TooManyRequests, match="Tenant 'acme' may send 3 requests a minute"):
        free.count_request(first)
    free.count_request(stranger)
    with free.hold_stream(second, "gen-1"):
        with pytest.raises(TooManyStreams, match="Tenant 'acme' may have 1"), free.hold_stream(first, "gen-2"):
            pytest.fail("two streams where the tenant has one")
        with free.hold_stream(stranger, "gen-3"):
            # What the tenant refused took no turn of the key.
            assert redis_client.zcard(keys.streams("k1")) == 0
    with free.hold_stream(first, "gen-4"):
        assert redis_client.zcard(keys.streams("tenant/acme")) == 1


def test_what_the_tenant_refuses_is_not_counted_against_the_key(
    redis_client: redis.Redis, redis_server: RedisServer, closing: ExitStack
) -> None:
    free = limits(redis_client, redis_server, closing)
    key = Principal("k1", "k1", bounds=Bounds(requests_per_minute=9), tenant_bounds=Bounds(requests_per_minute=1))
    free.count_request(key)
    for _ in range(20):
        with pytest.raises(TooManyRequests, match="Tenant"):
            free.count_request(key)
    alone = Principal("k1", "k1", bounds=Bounds(requests_per_minute=9))
    allowance = free.count_request(alone)
    assert allowance is not None
    assert allowance.remaining == 7
