"""Entries of the token log as the native interface's chunks, for every face."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from services.inference.performance import Performance
from store.redis.request_records import RequestRecord
from store.token_log.entries import Entry, Kind, Outcome, encode
from store.token_log.outcomes import Failure


@dataclass(frozen=True)
class ChunkEvent:
    """One event: its JSON (or ``[DONE]``), the id to resume from, and the event's name, if any."""

    data: bytes
    event_id: str = ""
    name: str = ""

    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.data)
        return value


DONE = ChunkEvent(b"[DONE]")


class ChunkWriter:
    """Writes one request's stream. ``metadata`` None leaves it out."""

    def __init__(
        self, request_id: str, metadata: dict[str, str] | None, offset: int, performance: Performance | None = None
    ) -> None:
        self._id = request_id
        self._metadata = metadata
        self._offset = offset
        self._performance = performance
        self._last: Entry | None = None
        # What stands around a choice is the same in every chunk but the last.
        self._head = encode({"id": request_id, "object": "text_completion.chunk"})[:-1] + b',"choices":['
        self._tail = b"]}" if metadata is None else b'],"metadata":' + encode(metadata) + b"}"

    @classmethod
    def of(cls, record: RequestRecord, offset: int, arrived: float) -> "ChunkWriter":
        """``offset``: the index of the first chunk that will be written; ``arrived``: when the call came."""
        metadata = {"traceId": record.id, **record.metadata} if record.payload.get("with_metadata") else None
        performance = Performance(arrived, record.trace_id) if record.payload.get("performance") else None
        return cls(record.id, metadata, offset, performance)

    def write(self, entry: Entry | None) -> Iterator[ChunkEvent | None]:
        """Yield the events of one entry; None (silence) as None."""
        if entry is None:
            yield None
        elif entry.kind == Kind.TEXT:
            self._last = entry
            if self._performance is not None:
                self._performance.observe(entry)
            yield ChunkEvent(self._head + entry.data + self._tail, str(entry.id))
        elif entry.terminal:
            yield from self._end(entry, entry.json())

    def _end(self, entry: Entry, end: dict[str, Any]) -> Iterator[ChunkEvent]:
        if end["outcome"] == Outcome.ERROR:
            yield self.error(Failure.from_dict(end["error"]), str(entry.id))
            return
        choice = {"index": 0, "text": "", "finish_reason": end["reason"], "offset": self._next_offset}
        chunk: dict[str, Any] = {"id": self._id, "object": "text_completion.chunk", "choices": [choice]}
        if self._metadata is not None:
            chunk["metadata"] = self._metadata
            if end["usage"] is not None:
                chunk["usage"] = end["usage"]
        if self._performance is not None:
            chunk["performance"] = self._performance.report()
        yield ChunkEvent(encode(chunk), str(entry.id))
        yield DONE

    def error(self, failure: Failure, event_id: str = "") -> ChunkEvent:
        """The event that ends a stream with an error."""
        return ChunkEvent(encode({"id": self._id, "error": failure.to_dict()}), event_id, "error")

    @property
    def _next_offset(self) -> int:
        return self._offset if self._last is None else int(self._last.json()["offset"]) + 1
