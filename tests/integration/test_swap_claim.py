"""Of several workers that would load one model, one does: for as long as it repeats its word."""

import asyncio

import redis

from launcher.redis_server import RedisServer
from store.redis import keys
from store.redis.client import connect_async
from tasks.worker.models.swapping import claim_model

MODEL = "claimed"


def claim(redis_server: RedisServer, worker: str) -> bool:
    async def ask() -> bool:
        client = connect_async(redis_server.url)
        try:
            return await claim_model(client, worker, MODEL)
        finally:
            await client.aclose()

    return asyncio.run(ask())


def test_one_worker_has_it(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    assert claim(redis_server, "w1")
    assert not claim(redis_server, "w2")
    assert claim(redis_server, "w1")


def test_it_is_kept_by_repeating_it(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    """Answers may take longer to end than a word holds that was not repeated."""
    assert claim(redis_server, "w1")
    full = redis_client.pttl(keys.swap_claim(MODEL))
    redis_client.pexpire(keys.swap_claim(MODEL), 500)
    assert claim(redis_server, "w1")
    assert redis_client.pttl(keys.swap_claim(MODEL)) > full // 2


def test_whose_ran_out_may_lose_it(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    assert claim(redis_server, "w1")
    redis_client.delete(keys.swap_claim(MODEL))
    assert claim(redis_server, "w2")
    assert not claim(redis_server, "w1")
