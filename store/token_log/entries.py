"""Entries of the token log: their ids, kinds and wire format."""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: The sequence number of a terminal entry: Redis refuses anything after it in the
#: same attempt, because it is the largest there is (an unsigned 64-bit number).
LAST_SEQUENCE = 2**64 - 1


class EntryId(NamedTuple):
    """``<attempt>-<sequence>``: ordered as Redis orders stream ids."""

    attempt: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.sequence}"

    @classmethod
    def parse(cls, text: str | bytes) -> "EntryId":
        """Raises ``ValueError`` for anything but two numbers that Redis would take."""
        attempt, dash, sequence = (text.decode() if isinstance(text, bytes) else text).partition("-")
        if not (dash and attempt.isascii() and attempt.isdigit() and sequence.isascii() and sequence.isdigit()):
            raise ValueError(f"{text!r} is not an entry id")
        entry_id = cls(int(attempt), int(sequence))
        if max(entry_id) > LAST_SEQUENCE:
            raise ValueError(f"{text!r} is not an entry id")
        return entry_id


#: Before every entry.
START = EntryId(0, 0)


class Kind:
    """What an entry says."""

    #: JSON: the worker of the attempt. First of every attempt.
    OPEN = "o"
    #: JSON, written once by the worker and passed through untouched: the ``choices`` element of the
    #: native API's chunk, ``{"index": 0, "text": new text, "offset": its index}``. The log keeps the
    #: tokens it came from beside it; followers are not sent them.
    TEXT = "t"
    #: JSON: status and content type of an HTTP answer. Before its body.
    HEAD = "h"
    #: Raw bytes of an HTTP body.
    BODY = "b"
    #: JSON: the attempt released the request unfinished (``reason``); another may take it up. The log keeps beside it
    #: the tokens of an answer that comes as a whole, so that it goes on from there.
    RELEASE = "r"
    #: JSON: how it ended. Nothing follows.
    END = "e"


class Reason:
    """Why an attempt released its request."""

    #: Nobody reads any more; it goes on when somebody does.
    CLIENT_GONE = "client_gone"
    #: The worker was told to stop, and its drain time is over.
    DRAIN = "drain"
    #: The engine process died under it. Counts as a kill.
    ENGINE_DEAD = "engine_dead"
    #: A line of a batch gave way to somebody who waits. Who runs the batch says when it goes on.
    PREEMPTED = "preempted"
    #: The worker does not serve the model (any more): another one may, else it ends.
    NOT_SERVED = "not_served"


class Outcome:
    """The ``outcome`` of a terminal entry."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as a reader gets it."""

    id: EntryId
    kind: str
    data: bytes
    #: Token ids of a ``TEXT``, separated by commas, or portions of a ``BODY`` or a ``RELEASE``; empty where it was
    #: published and not read.
    tokens: bytes = field(default=b"", compare=False)
    #: How many there are, where it was published.
    token_total: int = field(default=0, compare=False)

    @property
    def token_count(self) -> int:
        """Tokens that a ``TEXT`` came from."""
        return self.tokens.count(b",") + 1 if self.tokens else self.token_total

    @property
    def terminal(self) -> bool:
        return self.kind == Kind.END

    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.data)
        return value

    @staticmethod
    def parse_frame(frame: bytes) -> tuple[EntryId, "Entry"]:
        """Parse an entry as the scripts publish it: ``<previous id> <id> <kind> <data>``.

        A ``TEXT``'s kind is followed by the number of its tokens. The previous id tells a follower
        whether it missed something in between. Raises ``ValueError`` for anything else.
        """
        previous, entry_id, kind, data = frame.split(b" ", 3)
        count = int(kind[1:]) if len(kind) > 1 else 0
        return _parse_trusted(previous), Entry(_parse_trusted(entry_id), kind[:1].decode(), data, token_total=count)


def _parse_trusted(text: bytes) -> EntryId:
    """As ``EntryId.parse``, for what Redis wrote itself: every token of every stream passes here."""
    attempt, _, sequence = text.partition(b"-")
    return EntryId(int(attempt), int(sequence))


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def encode(value: dict[str, Any]) -> bytes:
    """JSON as compact as it gets."""
    return _encoder.encode(value).encode()


def encode_choice(text: str, offset: int) -> bytes:
    """The data of a ``TEXT`` entry."""
    return f'{{"index":0,"text":{_encoder.encode(text)},"offset":{offset}}}'.encode()
