"""One attempt's side of its token log: what has gathered, what Redis has, what must be sent again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import redis.asyncio

from store.errors import LogBroken, Superseded
from store.redis import keys as redis_keys
from store.token_budget.settlement import NOTHING, Settlement
from store.token_log.entries import (
    LAST_SEQUENCE,
    Entry,
    EntryId,
    Kind,
    encode,
    encode_choice,
)
from store.token_log.log import END, FIRST_SEQUENCE, OPEN, entries_from_rows, require_accepted

T = TypeVar("T")


class Transport(Protocol):
    """Who brings what a writer has gathered to Redis: the publisher."""

    client: redis.asyncio.Redis
    ttl: int

    def schedule_flush(self, writer: "LogWriter") -> None: ...

    def flush_lazily(self, writer: "LogWriter") -> None: ...

    async def retry_until_available(self, call: Callable[[], Awaitable[T]]) -> T: ...

    async def run_script(self, script: str, keys: int, *arguments: Any) -> int: ...


def _nothing_used(_kind: str, _data: dict[str, Any]) -> tuple[str, Settlement]:
    return "", NOTHING


class LogWriter:
    """Writes one attempt of one request. Made by :meth:`Publisher.writer`.

    Every entry of the attempt is kept until the writer is dropped: a Redis that restarts
    from its file may have lost the last second, and gets it again.
    """

    def __init__(self, transport: Transport, request_id: str, attempt: int, lifetime: int) -> None:
        self._transport = transport
        #: How long the log lives while it has not ended. Seconds.
        self._lifetime = lifetime
        self.request_id = request_id
        self.attempt = attempt
        #: Followers that the last batch was published to; 0 means that nobody follows.
        self.followers = 1
        self.superseded = False
        #: Set when the entries could not be written for a reason that is a fault of ours.
        self.failed = False
        self.abandoned = False
        #: Makes what goes with the closing entry, of its kind and data: the line of the outbox, and how the request's
        #: token limits are settled; '' for none.
        self.account: Callable[[str, dict[str, Any]], tuple[str, Settlement]] = _nothing_used
        self._bill, self.settled_limits = _nothing_used("", {})
        self.keys = (redis_keys.log(request_id), redis_keys.log_channel(request_id), redis_keys.request(request_id))
        self._index = 0
        self._entries: list[Entry] = []
        self._confirmed = 0
        self.uncertain = False
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._body: list[bytes] = []
        self._body_tokens: list[str] = []
        self._confirmed_all = asyncio.Event()

    def start_at_index(self, index: int) -> None:
        """Earlier attempts delivered ``index`` chunks: the next one has that index."""
        self._index = index

    async def open(self, data: dict[str, Any]) -> None:
        """Take the log over for this attempt. Raises ``Superseded`` when that is refused."""
        payload = encode(data)
        arguments = (*self.keys, self._lifetime, self.attempt, payload)
        result = await self._transport.retry_until_available(lambda: self._transport.run_script(OPEN, 3, *arguments))
        self.followers = require_accepted(result, self.request_id)
        self._entries.append(Entry(EntryId(self.attempt, FIRST_SEQUENCE), Kind.OPEN, payload))
        self._confirmed = 1

    def text(self, text: str, token_ids: tuple[int, ...]) -> None:
        """Add new text. Raises ``Superseded`` once an append was refused."""
        self._check()
        self._tokens.extend(token_ids)
        if text:
            self._text.append(text)
            self._transport.schedule_flush(self)

    def body(self, data: bytes, tokens: str = "") -> None:
        """Add bytes of an HTTP body, and the tokens that they came from, with commas between.

        Raises ``Superseded`` once an append was refused.
        """
        self._check()
        self._body.append(data)
        if tokens:
            self._body_tokens.append(tokens)
        self._transport.schedule_flush(self)

    def head(self, data: dict[str, Any]) -> None:
        """Add the head of an HTTP answer; it may wait for company. Raises ``Superseded`` once refused."""
        self._check()
        self._add(Kind.HEAD, encode(data))
        self._transport.flush_lazily(self)

    async def end(self, data: dict[str, Any]) -> None:
        """Write what is left and the terminal entry, and wait until Redis has it."""
        await self._finish(Kind.END, data)

    async def release(self, data: dict[str, Any], tokens: str = "") -> None:
        """Write what is left and release the request, and wait until Redis has it. ``tokens`` are of a whole answer."""
        await self._finish(Kind.RELEASE, data, tokens)

    async def _finish(self, kind: str, data: dict[str, Any], tokens: str = "") -> None:
        self._check()
        if not self._entries:
            await self._finish_unopened(kind, data)
            return
        self._seal()
        self._bill, self.settled_limits = self.account(kind, data)
        self._entries.append(Entry(EntryId(self.attempt, LAST_SEQUENCE), kind, encode(data), tokens.encode()))
        self._confirmed_all.clear()
        self._transport.schedule_flush(self)
        await self._confirmed_all.wait()
        self._check()

    async def _finish_unopened(self, kind: str, data: dict[str, Any]) -> None:
        """The attempt never opened: there is nothing to release, but it can be ended."""
        if kind == Kind.END:
            bill, settled = self.account(kind, data)
            keys = (*self.keys, redis_keys.bills(), *settled.keys)
            arguments = (self._transport.ttl, encode(data), bill, settled.text)
            await self._transport.retry_until_available(
                lambda: self._transport.run_script(END, len(keys), *keys, *arguments)
            )

    def abandon(self) -> None:
        """The request is served no more: what Redis has not taken yet need not be sent."""
        self.abandoned = True

    def _check(self) -> None:
        if self.failed:
            raise LogBroken(f"the token log of {self.request_id} could not be written")
        if self.superseded:
            raise Superseded(f"the token log of {self.request_id} was taken over")

    def _seal(self) -> None:
        """Turn what has gathered into one entry."""
        if self._text:
            tokens = ",".join(map(str, self._tokens)).encode()
            self._add(Kind.TEXT, encode_choice("".join(self._text), self._index), tokens)
            self._text, self._tokens = [], []
            self._index += 1
        if self._body:
            self._add(Kind.BODY, b"".join(self._body), ",".join(self._body_tokens).encode())
            self._body, self._body_tokens = [], []

    def _add(self, kind: str, data: bytes, tokens: bytes = b"") -> None:
        self._entries.append(Entry(EntryId(self.attempt, len(self._entries) + FIRST_SEQUENCE), kind, data, tokens))

    # Called by the publisher.

    def append_arguments(self) -> list[Any]:
        """Return this writer's part of the append script's arguments; empty when all is confirmed."""
        self._seal()
        waiting = self._entries[self._confirmed :]
        if not waiting:
            return []
        ttl = self._transport.ttl if waiting[-1].terminal else ""
        # With the closing entry; the last one of all has it, and there is one at most.
        arguments: list[Any] = [
            ttl,
            str(self._entries[self._confirmed - 1].id),
            len(waiting),
            self._bill,
            self.settled_limits.text,
        ]
        for entry in waiting:
            arguments += (str(entry.id), entry.kind, entry.data, entry.tokens)
        return arguments

    @property
    def settled(self) -> bool:
        """Whether Redis has everything that was added so far."""
        return not (self._text or self._body) and self._confirmed == len(self._entries)

    @property
    def length(self) -> int:
        """Entries of this attempt so far."""
        return len(self._entries)

    def written(self, count: int, followers: int) -> None:
        self._confirmed = count
        self.followers = followers
        if self._confirmed == len(self._entries):
            self._confirmed_all.set()

    def mark_superseded(self) -> None:
        self.superseded = True
        self._confirmed_all.set()

    def mark_failed(self) -> None:
        self.failed = True
        self._confirmed_all.set()

    def mark_uncertain(self) -> None:
        """Redis may have taken the last batch or not, or may have lost what it had."""
        self.uncertain = True

    async def recover(self) -> None:
        """After an outage: find out what the log holds, so that exactly the rest is sent."""
        if not self.uncertain:
            return
        rows: Any = await self._transport.client.xrevrange(self.keys[0], count=1)
        last = entries_from_rows(rows)[0].id if rows else EntryId(0, 0)
        if last.attempt > self.attempt:
            self.mark_superseded()
            return
        held = sum(1 for entry in self._entries if entry.id <= last)
        if held == 0:
            # The log is gone, opening entry and all: take it over once more.
            first = self._entries[0]
            opened = await self._transport.run_script(OPEN, 3, *self.keys, self._lifetime, self.attempt, first.data)
            if opened == -1:
                self.mark_superseded()
                return
            held = 1
        self.written(held, self.followers)
        self.uncertain = False
