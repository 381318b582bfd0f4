"""The worker's side of the token log: many writers, one pipeline.

Chunks gather while the last batch is under way and leave together in the next one, so
the cost of a token falls under load, and a lone request pays no wait at all.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis.asyncio
from redis.exceptions import NoScriptError, RedisError

from store.redis import keys as redis_keys
from store.redis.command_batcher import CommandBatcher
from store.token_log.log import APPEND, LogSnapshot, entries_from_rows
from store.token_log.writer import LogWriter

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Writers in one call of the append script: one call holds Redis for well under a millisecond.
MAX_BATCH = 32
#: Pause between tries while Redis is away: doubles from the first to the second. Seconds.
_RETRY_SECONDS = (0.05, 1.0)


class Batch:
    """What one call of the append script carries."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        #: Those that settlements of token limits touch.
        self.limit_keys: list[str] = []
        self.arguments: list[Any] = []
        #: With the number of entries that each has sent when the call returns.
        self.writers: list[tuple[LogWriter, int]] = []

    @property
    def full(self) -> bool:
        return len(self.writers) >= MAX_BATCH

    def add(self, writer: LogWriter, arguments: list[Any]) -> None:
        self.keys += writer.keys
        self.limit_keys += writer.settled_limits.keys
        self.arguments += arguments
        self.writers.append((writer, writer.length))

    def apply_results(self, results: list[int]) -> list[LogWriter]:
        """Tell the writers what came of it; return those to try again."""
        retry = []
        for (writer, count), result in zip(self.writers, results, strict=True):
            if result == -2:
                writer.mark_uncertain()
                retry.append(writer)
            elif result == -1:
                writer.mark_superseded()
            else:
                writer.written(count, result)
        return retry


class Publisher:
    """Sends what the writers of one worker have gathered. Lives on the engine's loop."""

    def __init__(self, client: redis.asyncio.Redis, ttl: int) -> None:
        self.client = client
        self.commands = CommandBatcher(client)
        self.ttl = ttl
        self._dirty: dict[LogWriter, None] = {}
        self._flush_requested = asyncio.Event()
        #: Whether a batch is under way.
        self._busy = False
        self._hashes: dict[str, str] = {}

    def writer(self, request_id: str, attempt: int = 1, lifetime: int = 0) -> LogWriter:
        """Return the writer of an attempt. ``lifetime`` is how long the request may still run, in seconds.

        The log of a request that has not ended must outlive its record: a missing log means
        that no worker has begun.
        """
        return LogWriter(self, request_id, attempt, lifetime + self.ttl)

    def schedule_flush(self, writer: LogWriter) -> None:
        self._dirty[writer] = None
        self._flush_requested.set()

    def flush_lazily(self, writer: LogWriter) -> None:
        """As :meth:`schedule_flush`, for what need not leave at once: on a busy loop it leaves with what comes next."""
        self._dirty[writer] = None
        if not self._busy:
            self._flush_requested.set()

    async def run(self) -> None:
        """Send batches until cancelled."""
        while True:
            await self._flush_requested.wait()
            self._flush_requested.clear()
            writers, self._dirty = self._dirty, {}
            pending = [writer for writer in writers if not writer.superseded]
            self._busy = True
            try:
                await self._deliver(pending)
            except Exception:
                # One batch must not take all later ones along: only its own requests fail.
                log.exception("The token logs could not be written")
                for writer in pending:
                    writer.mark_failed()
            finally:
                self._busy = False

    async def retry_until_available(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call until Redis answers it; the caller's deadline bounds that."""
        pause = _RETRY_SECONDS[0]
        while True:
            try:
                return await call()
            except (RedisError, OSError) as error:
                log.warning("Redis is away, a request waits: %s", error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _RETRY_SECONDS[1])

    async def count_followers(self, request_id: str) -> int:
        """Return how many processes follow a request now."""
        counts: Any = await self.client.pubsub_numsub(redis_keys.log_channel(request_id))
        return sum(int(count) for _, count in counts)

    async def snapshot(self, request_id: str) -> LogSnapshot:
        """Return what the log holds of a request."""
        rows: Any = await self.retry_until_available(lambda: self.client.xrange(redis_keys.log(request_id)))
        return LogSnapshot(tuple(entries_from_rows(rows)))

    async def run_script(self, script: str, keys: int, *arguments: Any) -> int:
        """Run one script by its hash, loading it first where Redis does not know it."""
        if script not in self._hashes:
            self._hashes[script] = await self.client.script_load(script)
        try:
            return int(await self.commands.execute("EVALSHA", self._hashes[script], keys, *arguments))
        except NoScriptError:
            self._hashes.pop(script, None)
            return await self.run_script(script, keys, *arguments)

    async def _deliver(self, writers: list[LogWriter]) -> None:
        """Send one batch, for as long as it takes; each request's own deadline bounds it."""
        pause = _RETRY_SECONDS[0]
        while writers:
            writers = [writer for writer in writers if not writer.abandoned]
            try:
                writers = await self._send(writers)
            except (RedisError, OSError) as error:
                log.warning("Redis is away, the token logs wait: %s", error)
                for writer in writers:
                    writer.mark_uncertain()
                await asyncio.sleep(pause)
                pause = min(pause * 2, _RETRY_SECONDS[1])

    async def _send(self, writers: list[LogWriter]) -> list[LogWriter]:
        """Append for every writer in one round trip; return those to try again."""
        if APPEND not in self._hashes:
            self._hashes[APPEND] = await self.client.script_load(APPEND)
        batches = [Batch()]
        for writer in writers:
            await writer.recover()
            arguments = [] if writer.superseded else writer.append_arguments()
            if arguments:
                if batches[-1].full:
                    batches.append(Batch())
                batches[-1].add(writer, arguments)
        if not batches[0].writers:
            return []
        pipeline = self.client.pipeline(transaction=False)
        for batch in batches:
            keys = (redis_keys.bills(), *batch.keys, *batch.limit_keys)
            pipeline.evalsha(self._hashes[APPEND], len(keys), *keys, len(batch.writers), *batch.arguments)
        results = await pipeline.execute(raise_on_error=False)
        retry: list[LogWriter] = []
        for batch, result in zip(batches, results, strict=True):
            if isinstance(result, NoScriptError):
                self._hashes.pop(APPEND, None)
                retry += (writer for writer, _ in batch.writers)
            elif isinstance(result, Exception):
                # A full memory or disk, a replica that takes no writes: they pass, and each
                # request's own deadline bounds the wait.
                raise result
            else:
                retry += batch.apply_results(result)
        return retry
