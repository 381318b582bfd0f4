"""The token log: a Redis stream per request, written by one worker at a time, read by anyone.

One script appends and publishes, so that what a follower hears and what the log holds
cannot differ. Redis itself fences: it refuses an id that is not greater than the last
one, so a worker that was given up for dead cannot write into the stream of its successor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from store.errors import Superseded
from store.redis import keys as redis_keys
from store.token_budget.scripts import SETTLE_FUNCTIONS
from store.token_budget.settlement import NOTHING, Settlement
from store.token_log.entries import (
    LAST_SEQUENCE,
    START,
    Entry,
    EntryId,
    Kind,
    encode,
)

#: Most entries a log keeps; a request may have 2**17 chunks before the oldest go.
MAX_ENTRIES = 131_072

#: Most bills that wait to be booked, some 500 bytes each: nobody books where no ``cpu-work`` worker runs.
MAX_BILLS = 200_000

_FOLDER = Path(__file__).parent


def _script(name: str, functions: str = "") -> str:
    text = functions + (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    return text.replace("MAX_ENTRIES", str(MAX_ENTRIES)).replace("MAX_BILLS", str(MAX_BILLS))


#: Each script's file tells its arguments and what it returns.
APPEND, END = (_script(name, SETTLE_FUNCTIONS) for name in ("append", "end"))
OPEN, RELEASE_UNOPENED = map(_script, ("open", "release_unopened"))

#: The sequence number of an attempt's opening entry.
FIRST_SEQUENCE = 1


def terminal_id(attempt: int) -> EntryId:
    return EntryId(attempt, LAST_SEQUENCE)


def read(client: redis.Redis, request_id: str, after: EntryId = START, count: int | None = None) -> list[Entry]:
    """Return the entries after ``after``, oldest first; empty when there are none."""
    rows: Any = client.xrange(redis_keys.log(request_id), min=f"({after}", count=count)
    return entries_from_rows(rows)


def last(client: redis.Redis, request_id: str) -> Entry | None:
    """Return the newest entry; None when there is none."""
    rows: Any = client.xrevrange(redis_keys.log(request_id), count=1)
    return entries_from_rows(rows)[0] if rows else None


def end(
    client: redis.Redis, request_id: str, ttl: int, data: dict[str, Any], bill: str = "", settled: Settlement = NOTHING
) -> bool:
    """Write the terminal entry from outside the worker, and with it what was used. False when it had ended.

    ``bill``: the line of the outbox; ``settled``: its token limits.
    """
    keys = [redis_keys.log(request_id), redis_keys.log_channel(request_id), redis_keys.request(request_id)]
    script = client.register_script(END)
    return bool(
        script(keys=[*keys, redis_keys.bills(), *settled.keys], args=[ttl, encode(data), bill, settled.text]) != -1
    )


def release_unopened(client: redis.Redis, request_id: str, ttl: int, reason: str) -> bool:
    """Keep a queued request from being begun. False when it has begun or ended."""
    keys = [redis_keys.log(request_id), redis_keys.log_channel(request_id)]
    script = client.register_script(RELEASE_UNOPENED)
    return bool(script(keys=keys, args=[ttl, encode({"reason": reason})]) != -1)


@dataclass(frozen=True)
class LogSnapshot:
    """What a log holds of a request's text."""

    entries: tuple[Entry, ...]

    @property
    def text(self) -> str:
        return "".join(entry.json()["text"] for entry in self.entries if entry.kind == Kind.TEXT)

    @property
    def tokens(self) -> tuple[int, ...]:
        texts = (entry for entry in self.entries if entry.kind == Kind.TEXT and entry.tokens)
        return tuple(int(token) for entry in texts for token in entry.tokens.split(b","))

    @property
    def next_index(self) -> int:
        """The index of the chunk that comes next."""
        return sum(1 for entry in self.entries if entry.kind == Kind.TEXT)

    @property
    def has_body(self) -> bool:
        return any(entry.kind == Kind.BODY for entry in self.entries)

    @property
    def body(self) -> bytes:
        return b"".join(entry.data for entry in self.entries if entry.kind == Kind.BODY)

    @property
    def body_tokens(self) -> str:
        """What the body's bytes came from, as its writer told it."""
        bodies = (entry for entry in self.entries if entry.kind == Kind.BODY and entry.tokens)
        return ",".join(entry.tokens.decode() for entry in bodies)

    @property
    def unfinished_tokens(self) -> str:
        """What an attempt had made of a whole answer when it released the request; '' for none."""
        released = (entry for entry in reversed(self.entries) if entry.kind == Kind.RELEASE and entry.tokens)
        return next((entry.tokens.decode() for entry in released), "")

    @property
    def content_type(self) -> str:
        """Of the HTTP answer; '' before its head."""
        return next((str(entry.json()["content_type"]) for entry in self.entries if entry.kind == Kind.HEAD), "")

    @property
    def has_head(self) -> bool:
        return any(entry.kind == Kind.HEAD for entry in self.entries)

    @property
    def delivered_tokens(self) -> int:
        """How many tokens were delivered, of answers of every kind."""
        # A token of a body is a number, with a plus sign where a portion begins (``tasks.worker.inference.portions``).
        words = self.body_tokens.split(",") if self.has_body else []
        return len(self.tokens) + sum(word.removeprefix("+").isdigit() for word in words)

    @property
    def last(self) -> Entry | None:
        return self.entries[-1] if self.entries else None


def snapshot(client: redis.Redis, request_id: str) -> LogSnapshot:
    return LogSnapshot(tuple(read(client, request_id)))


def entries_from_rows(rows: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Entry]:
    return [
        Entry(EntryId.parse(entry_id), fields[b"k"].decode(), fields[b"d"], fields[b"n"]) for entry_id, fields in rows
    ]


def require_accepted(result: int, request_id: str) -> int:
    """Return the number of followers, or raise ``Superseded`` for a refused append."""
    if result == -1:
        raise Superseded(f"the token log of {request_id} has ended or belongs to a newer attempt")
    return result
