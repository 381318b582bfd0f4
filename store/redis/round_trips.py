"""A connection of one task's own, without what the library's pipeline does around a round trip."""

import asyncio
from typing import Any

import redis.asyncio
from redis.exceptions import ResponseError


class RoundTrips:
    """Sends commands together and reads their answers; one call at a time. Lives on one loop."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        # Their methods have no types.
        self._pool: Any = client.connection_pool
        self._connection: Any = None

    async def exchange(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Return each command's answer as Redis gave it, or its ``redis.ResponseError``.

        Raises the other ``redis.RedisError`` and ``OSError``: the connection broke, and what was sent may have
        been carried out. The next call makes it anew.
        """
        if self._connection is None:
            self._connection = self._pool.make_connection()
        connection, answers = self._connection, []
        try:
            await connection.connect()
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            for _ in commands:
                try:
                    answers.append(await connection.read_response(disconnect_on_error=False))
                except ResponseError as error:
                    answers.append(error)
        except BaseException:
            # Answers that are still on their way would be taken for those of later commands.
            await self.close()
            raise
        return answers

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.shield(connection.disconnect(nowait=True))
