"""Single Redis commands of many coroutines, sent together."""

import asyncio
from typing import Any

import redis.asyncio


class CommandBatcher:
    """Sends each command with whatever else has gathered while the last batch was under way.

    A lone command goes at once. Lives on one loop.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._waiting: list[tuple[asyncio.Future[Any], tuple[Any, ...]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def execute(self, *command: Any) -> Any:
        """Return the command's answer, or raise its ``redis.RedisError``."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((answer, command))
        if self._sender is None or self._sender.done():
            self._sender = loop.create_task(self._send())
        return await answer

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                pipeline = self._client.pipeline(transaction=False)
                for _, command in batch:
                    pipeline.execute_command(*command)
                results = await pipeline.execute(raise_on_error=False)
            except Exception as error:
                # Each caller decides what it means to it.
                results = [error] * len(batch)
            for (answer, _), result in zip(batch, results, strict=True):
                if answer.done():
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)
