"""One attempt's side of its token log: what has gathered, what Redis has, what must be sent again."""

import asyncio
from typing import TYPE_CHECKING, Any

from store import names
from store.entries import LAST_SEQUENCE, Entry, EntryId, Kind, encode, encode_choice
from store.errors import LogBroken, Superseded
from store.streams import END, FIRST_SEQUENCE, OPEN, entries_from_rows, require_written

if TYPE_CHECKING:
    from store.publisher import Publisher


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
        self.keys = (names.log(request_id), names.log_channel(request_id), names.request(request_id))
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
        arguments = (*self.keys, self._lifetime, self.attempt, payload)
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
        """Add the head of an HTTP answer; it may wait for company. Raises ``Superseded`` once refused."""
        self._check()
        self._add(Kind.HEAD, encode(data))
        self._publisher.nudge(self)

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
            arguments = (*self.keys, self._publisher.ttl, encode(data))
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
            tokens = ",".join(map(str, self._tokens)).encode()
            self._add(Kind.TEXT, encode_choice("".join(self._text), self._index), tokens)
            self._text, self._tokens = [], []
            self._index += 1
        if self._body:
            self._add(Kind.BODY, b"".join(self._body))
            self._body = []

    def _add(self, kind: str, data: bytes, tokens: bytes = b"") -> None:
        self._entries.append(Entry(EntryId(self.attempt, len(self._entries) + FIRST_SEQUENCE), kind, data, tokens))

    # Called by the publisher.

    def append_arguments(self) -> list[Any]:
        """Return this writer's part of the append script's arguments; empty when all is confirmed."""
        self._seal()
        waiting = self._entries[self._confirmed :]
        if not waiting:
            return []
        ttl = self._publisher.ttl if waiting[-1].terminal else ""
        arguments: list[Any] = [ttl, str(self._entries[self._confirmed - 1].id), len(waiting)]
        for entry in waiting:
            arguments += (str(entry.id), entry.kind, entry.data, entry.tokens)
        return arguments

    @property
    def length(self) -> int:
        """Entries of this attempt so far."""
        return len(self._entries)

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
        rows: Any = await self._publisher.client.xrevrange(self.keys[0], count=1)
        last = entries_from_rows(rows)[0].id if rows else EntryId(0, 0)
        if last.attempt > self.attempt:
            self.refuse()
            return
        held = sum(1 for entry in self._entries if entry.id <= last)
        if held == 0:
            # The log is gone, opening entry and all: take it over once more.
            first = self._entries[0]
            opened = await self._publisher.run_script(OPEN, 3, *self.keys, self._lifetime, self.attempt, first.data)
            if opened == -1:
                self.refuse()
                return
            held = 1
        self.written(held, self.followers)
        self._suspect = False
