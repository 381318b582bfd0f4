"""An answer of a worker's OpenAI application, read from its request's log."""

from collections.abc import Iterator
from typing import Any

from services.errors import RequestFailed
from store.token_log.entries import Entry, Kind, Outcome
from store.token_log.outcomes import Code, Failure


class Cancelled(RequestFailed):
    """The request ended without an answer, because a client wanted no more."""


def read_head(entries: Iterator[Entry | None], patient: bool) -> dict[str, Any] | None:
    """Wait for the head of the answer.

    A stream is begun without it (None) when it is late, so that keep-alive comments can
    be sent. Raises ``RequestFailed`` when the request ended before it.
    """
    for entry in entries:
        if entry is None and not patient:
            return None
        if entry is not None and entry.kind == Kind.HEAD:
            return entry.json()
        if entry is not None and entry.terminal:
            raise failed(entry)
    raise AssertionError("a log always ends with a terminal entry")


def read_body(entries: Iterator[Entry | None]) -> tuple[bytes, dict[str, Any]]:
    """Return the body of an answer whose head was read, and its terminal entry. Raises ``RequestFailed``."""
    parts: list[bytes] = []
    end: dict[str, Any] = {}
    for entry in entries:
        if entry is not None and entry.kind == Kind.BODY:
            parts.append(entry.data)
        elif entry is not None and entry.terminal:
            end = entry.json()
            if end["outcome"] != Outcome.FINISHED:
                raise failed(entry)
    return b"".join(parts), end


def failed(entry: Entry) -> RequestFailed:
    """Return what a terminal entry without an answer means."""
    kind = Cancelled if entry.json()["outcome"] == Outcome.CANCELLED else RequestFailed
    return kind(failure_of(entry))


def failure_of(entry: Entry) -> Failure:
    """Return what its client is told."""
    end = entry.json()
    if end["outcome"] == Outcome.CANCELLED:
        return Failure(Code.INSUFFICIENT_RESOURCES, "The request was cancelled")
    return Failure.from_dict(end["error"])
