"""Commands of many coroutines over one pipeline, on a real Redis."""

import asyncio
from pathlib import Path

import pytest
import redis

from launcher.redis_server import RedisServer
from store.redis.client import connect_async
from store.redis.command_batcher import CommandBatcher


def test_each_caller_gets_its_own_answer_and_its_own_error(
    redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    async def main() -> None:
        client = connect_async(redis_server.url)
        commands = CommandBatcher(client)
        answers = await asyncio.gather(
            *(commands.execute("SET", f"k{number}", number) for number in range(50)),
            commands.execute("INCR", "k7"),
            commands.execute("HGET", "k1", "not a hash"),
            commands.execute("GET", "k49"),
            return_exceptions=True,
        )
        assert answers[50] == 8
        assert isinstance(answers[51], redis.ResponseError)
        assert answers[52] == b"49"
        await client.aclose()

    asyncio.run(main())


def test_a_redis_that_is_away_fails_all_that_wait_and_the_next_call_works_again(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()

    async def main() -> None:
        client = connect_async(server.url)
        commands = CommandBatcher(client)
        assert await commands.execute("PING")
        server.stop()
        failed = await asyncio.gather(*(commands.execute("PING") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(error, (redis.RedisError, OSError)) for error in failed), failed
        server.start()
        assert await commands.execute("PING")
        await client.aclose()

    try:
        asyncio.run(main())
    finally:
        server.stop()


def test_a_caller_that_gives_up_disturbs_nobody(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    async def main() -> None:
        client = connect_async(redis_server.url)
        commands = CommandBatcher(client)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await asyncio.gather(commands.execute("BLPOP", "nothing-comes", 1))
        assert await asyncio.wait_for(commands.execute("ECHO", "later"), 5) == b"later"
        await client.aclose()

    asyncio.run(main())
