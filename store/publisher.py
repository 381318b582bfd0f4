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

from store import names
from store.entries import LAST_SEQUENCE, Entry, EntryId, Kind, encode
from store.errors import LogBroken, Superseded
from store.streams import APPEND, END, FIRST_SEQUENCE, OPEN, Delivered, entries_from_rows, require_written

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Pause between tries while Redis is away: doubles from the first to the second. Seconds.
_RETRY_SECONDS = (0.05, 1.0)


class LogWriter:
    """Writes one attempt of one request. Made by :meth:`Publisher.writer`.

    Every entry of the attempt is kept until the writer is dropped: a Redis that restarts
    from its file may have lost the last second, and gets it again.
    """

    def __init__(self, publisher: "Publisher", request_id: str, attempt: int, lifetime: int) -> None:
        self._publisher = publisher
        #: How long the log lives while it has not ended. Seconds.
        self._lifetime = lifetime
        self.request_id = request_id
        self.attempt = attempt
        #: Who heard the last batch; 0 means that nobody follows.
        self.followers = 1
        self.refused = False
        #: Set when the entries could not be written for a reason that is a fault of ours.
        self.failed = False
        self.abandoned = False
        self._keys = (names.log(request_id), names.log_channel(request_id), names.request(request_id))
        self._index = 0
        self._entries: list[Entry] = []
        self._confirmed = 0
        self._suspect = False
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._body: list[bytes] = []
        self._settled = asyncio.Event()

    def skip(self, index: int) -> None:
        """Earlier attempts delivered ``index`` chunks: the next one has that index."""
        self._index = index

    async def open(self, data: dict[str, Any]) -> None:
        """Take the log over for this attempt. Raises ``Superseded`` when that is refused."""
        payload = encode(data)
        arguments = (*self._keys, self._lifetime, self.attempt, payload)
        result = await self._publisher.insist(lambda: self._publisher.run_script(OPEN, 3, *arguments))
        self.followers = require_written(result, self.request_id)
        self._entries.append(Entry(EntryId(self.attempt, FIRST_SEQUENCE), Kind.OPEN, payload))
        self._confirmed = 1

    def text(self, text: str, token_ids: tuple[int, ...]) -> None:
        """Add new text. Raises ``Superseded`` once an append was refused."""
        self._check()
        self._tokens.extend(token_ids)
        if text:
            self._text.append(text)
            self._publisher.wake(self)

    def body(self, data: bytes) -> None:
        """Add bytes of an HTTP body. Raises ``Superseded`` once an append was refused."""
        self._check()
        self._body.append(data)
        self._publisher.wake(self)

    def head(self, data: dict[str, Any]) -> None:
        """Add the head of an HTTP answer. Raises ``Superseded`` once an append was refused."""
        self._check()
        self._add(Kind.HEAD, encode(data))
        self._publisher.wake(self)

    async def end(self, data: dict[str, Any]) -> None:
        """Write what is left and the terminal entry, and wait until Redis has it."""
        await self._finish(Kind.END, data)

    async def release(self, data: dict[str, Any]) -> None:
        """Write what is left and let go of the request, and wait until Redis has it."""
        await self._finish(Kind.RELEASE, data)

    async def _finish(self, kind: str, data: dict[str, Any]) -> None:
        self._check()
        if not self._entries:
            await self._finish_unopened(kind, data)
            return
        self._seal()
        self._entries.append(Entry(EntryId(self.attempt, LAST_SEQUENCE), kind, encode(data)))
        self._settled.clear()
        self._publisher.wake(self)
        await self._settled.wait()
        self._check()

    async def _finish_unopened(self, kind: str, data: dict[str, Any]) -> None:
        """The attempt never opened: there is nothing to let go of, but it can be ended."""
        if kind == Kind.END:
            arguments = (*self._keys, self._publisher.ttl, encode(data))
            await self._publisher.insist(lambda: self._publisher.run_script(END, 3, *arguments))

    def leave(self) -> None:
        """The request is served no more: what Redis has not taken yet need not be sent."""
        self.abandoned = True

    def _check(self) -> None:
        if self.failed:
            raise LogBroken(f"the token log of {self.request_id} could not be written")
        if self.refused:
            raise Superseded(f"the token log of {self.request_id} was taken over")

    def _seal(self) -> None:
        """Turn what has gathered into one entry."""
        if self._text:
            payload = {"i": self._index, "t": "".join(self._text), "k": self._tokens}
            self._add(Kind.TEXT, encode(payload))
            self._text, self._tokens = [], []
            self._index += 1
        if self._body:
            self._add(Kind.BODY, b"".join(self._body))
            self._body = []

    def _add(self, kind: str, data: bytes) -> None:
        self._entries.append(Entry(EntryId(self.attempt, len(self._entries) + FIRST_SEQUENCE), kind, data))

    # Called by the publisher.

    def append_arguments(self) -> list[Any] | None:
        """Return the arguments of the append script for all that is not confirmed, or None."""
        self._seal()
        waiting = self._entries[self._confirmed :]
        if not waiting:
            return None
        ttl = self._publisher.ttl if waiting[-1].terminal else self._lifetime
        arguments: list[Any] = [ttl, str(self._entries[self._confirmed - 1].id)]
        for entry in waiting:
            arguments += [str(entry.id), entry.kind, entry.data]
        return [*self._keys, *arguments]

    def written(self, count: int, followers: int) -> None:
        self._confirmed = count
        self.followers = followers
        if self._confirmed == len(self._entries):
            self._settled.set()

    def refuse(self) -> None:
        self.refused = True
        self._settled.set()

    def fail(self) -> None:
        self.failed = True
        self._settled.set()

    def suspect(self) -> None:
        """Redis may have taken the last batch or not, or may have lost what it had."""
        self._suspect = True

    async def recover(self) -> None:
        """After an outage: find out what the log holds, so that exactly the rest is sent."""
        if not self._suspect:
            return
        rows: Any = await self._publisher.client.xrevrange(self._keys[0], count=1)
        last = entries_from_rows(rows)[0].id if rows else EntryId(0, 0)
        if last.attempt > self.attempt:
            self.refuse()
            return
        held = sum(1 for entry in self._entries if entry.id <= last)
        if held == 0:
            # The log is gone, opening entry and all: take it over once more.
            first = self._entries[0]
            opened = await self._publisher.run_script(OPEN, 3, *self._keys, self._lifetime, self.attempt, first.data)
            if opened == -1:
                self.refuse()
                return
            held = 1
        self.written(held, self.followers)
        self._suspect = False


class Publisher:
    """Sends what the writers of one worker have gathered. Lives on the engine's loop."""

    def __init__(self, client: redis.asyncio.Redis, ttl: int) -> None:
        self.client = client
        self.ttl = ttl
        self._dirty: dict[LogWriter, None] = {}
        self._wake = asyncio.Event()
        self._hashes: dict[str, str] = {}

    def writer(self, request_id: str, attempt: int = 1, lifetime: int = 0) -> LogWriter:
        """Return the writer of an attempt. ``lifetime`` is how long the request may still run, in seconds.

        The log of a request that has not ended must outlive its record: a missing log means
        that no worker has begun.
        """
        return LogWriter(self, request_id, attempt, lifetime + self.ttl)

    def wake(self, writer: LogWriter) -> None:
        self._dirty[writer] = None
        self._wake.set()

    async def run(self) -> None:
        """Send batches until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            writers, self._dirty = self._dirty, {}
            own = [writer for writer in writers if not writer.refused]
            try:
                await self._deliver(own)
            except Exception:
                # One batch must not take all later ones along: only its own requests fail.
                log.exception("The token logs could not be written")
                for writer in own:
                    writer.fail()

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
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
        counts: Any = await self.client.pubsub_numsub(names.log_channel(request_id))
        return sum(int(count) for _, count in counts)

    async def delivered(self, request_id: str) -> Delivered:
        """Return what the log holds of a request."""
        rows: Any = await self.insist(lambda: self.client.xrange(names.log(request_id)))
        return Delivered(tuple(entries_from_rows(rows)))

    async def run_script(self, script: str, keys: int, *arguments: Any) -> int:
        """Run one script by its hash, loading it first where Redis does not know it."""
        if script not in self._hashes:
            self._hashes[script] = await self.client.script_load(script)
        try:
            return int(await self.client.evalsha(self._hashes[script], keys, *arguments))
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
                    writer.suspect()
                await asyncio.sleep(pause)
                pause = min(pause * 2, _RETRY_SECONDS[1])

    async def _send(self, writers: list[LogWriter]) -> list[LogWriter]:
        """Append for every writer in one round trip; return those to try again."""
        if APPEND not in self._hashes:
            self._hashes[APPEND] = await self.client.script_load(APPEND)
        pipeline = self.client.pipeline(transaction=False)
        sent: list[tuple[LogWriter, int]] = []
        for writer in writers:
            await writer.recover()
            arguments = None if writer.refused else writer.append_arguments()
            if arguments is not None:
                pipeline.evalsha(self._hashes[APPEND], 3, *arguments)
                sent.append((writer, len(writer._entries)))
        results = await pipeline.execute(raise_on_error=False)
        again = []
        for (writer, count), result in zip(sent, results, strict=True):
            if isinstance(result, NoScriptError):
                self._hashes.pop(APPEND, None)
                again.append(writer)
            elif isinstance(result, Exception):
                # A full memory or disk, a replica that takes no writes: they pass, and each
                # request's own deadline bounds the wait.
                raise result
            elif result == -2:
                writer.suspect()
                again.append(writer)
            elif result == -1:
                writer.refuse()
            else:
                writer.written(count, result)
        return again
