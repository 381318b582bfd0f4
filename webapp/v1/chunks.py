"""Entries of the token log as the native API's chunks."""

from collections.abc import Iterator
from typing import Any

from store.entries import Entry, Kind, Outcome, encode
from webapp import sse


class ChunkWriter:
    """Writes one request's stream. ``metadata`` None leaves it out."""

    def __init__(self, request_id: str, metadata: dict[str, str] | None) -> None:
        self._id = request_id
        self._metadata = metadata
        self._next_offset = 0

    def write(self, entry: Entry | None) -> Iterator[bytes]:
        """Yield the events of one entry; None (silence) is a comment line."""
        if entry is None:
            yield sse.KEEPALIVE
        elif entry.kind == Kind.TEXT:
            data = entry.json()
            self._next_offset = data["i"] + 1
            yield self._event(entry, {"index": 0, "text": data["t"], "offset": data["i"]})
        elif entry.terminal:
            yield from self._end(entry, entry.json())

    def _end(self, entry: Entry, end: dict[str, Any]) -> Iterator[bytes]:
        if end["outcome"] != Outcome.FINISHED:
            yield sse.event(encode({"id": self._id, "error": end["error"]}), str(entry.id), "error")
            return
        choice = {"index": 0, "text": "", "finish_reason": end["reason"], "offset": self._next_offset}
        yield self._event(entry, choice, usage=end["usage"])
        yield sse.event(b"[DONE]")

    def _event(self, entry: Entry, choice: dict[str, Any], usage: dict[str, int] | None = None) -> bytes:
        chunk: dict[str, Any] = {"id": self._id, "object": "text_completion.chunk", "choices": [choice]}
        if self._metadata is not None:
            chunk["metadata"] = self._metadata
            if usage is not None:
                chunk["usage"] = usage
        return sse.event(encode(chunk), str(entry.id))
