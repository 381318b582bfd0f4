"""A running publisher, for tests that write token logs."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from store.redis.client import connect_async
from store.token_log.publisher import Publisher

#: How long a finished log is kept. Seconds.
TTL = 60


def publish(url: str, work: Callable[[Publisher], Awaitable[None]]) -> None:
    """Run ``work`` with a running publisher."""

    async def main() -> None:
        client = connect_async(url)
        publisher = Publisher(client, TTL)
        task = asyncio.create_task(publisher.run())
        try:
            async with asyncio.timeout(30):
                await work(publisher)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await client.aclose()

    asyncio.run(main())
