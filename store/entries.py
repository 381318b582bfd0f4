"""Entries of the token log: their ids, kinds and wire format."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

#: The sequence number of a terminal entry: Redis refuses anything behind it in the
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
        own = cls(int(attempt), int(sequence))
        if max(own) > LAST_SEQUENCE:
            raise ValueError(f"{text!r} is not an entry id")
        return own


#: Before every entry.
START = EntryId(0, 0)


class Kind:
    """What an entry says."""

    #: JSON: the worker of the attempt. First of every attempt.
    OPEN = "o"
    #: JSON: new text (``t``), its index (``i``) and the tokens it came from (``k``).
    TEXT = "t"
    #: JSON: status and content type of an HTTP answer. Before its body.
    HEAD = "h"
    #: Raw bytes of an HTTP body.
    BODY = "b"
    #: JSON: the attempt let go of the request unfinished (``reason``); another may take it up.
    RELEASE = "r"
    #: JSON: how it ended. Nothing follows.
    END = "e"


class Reason:
    """Why an attempt let go."""

    #: Nobody reads any more; it goes on when somebody does.
    CLIENT_GONE = "client_gone"
    #: The worker was told to stop, and its drain time is over.
    DRAIN = "drain"
    #: The engine process died under it. Counts as a kill.
    ENGINE_DEAD = "engine_dead"


class Outcome:
    """The ``outcome`` of a terminal entry."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True)
class Entry:
    """One entry as a reader gets it."""

    id: EntryId
    kind: str
    data: bytes

    @property
    def terminal(self) -> bool:
        return self.kind == Kind.END

    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.data)
        return value

    def frame(self, previous: EntryId) -> bytes:
        """The entry as it is published: ``<previous id> <id> <kind> <data>``.

        The previous id tells a follower whether it missed something in between.
        """
        return b"%s %s %s %s" % (str(previous).encode(), str(self.id).encode(), self.kind.encode(), self.data)

    @staticmethod
    def parse_frame(frame: bytes) -> tuple[EntryId, "Entry"]:
        previous, own, kind, data = frame.split(b" ", 3)
        return EntryId.parse(previous), Entry(EntryId.parse(own), kind.decode(), data)


def encode(value: dict[str, Any]) -> bytes:
    """JSON as compact as it gets."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
