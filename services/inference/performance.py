"""How fast an answer came, for clients that ask: the time to its first token, and tokens a second after it."""

import time
from typing import Any

from store.token_log.entries import Entry, Kind


class Performance:
    """Watches one answer on its way to its client."""

    def __init__(self, arrived: float, trace_id: str) -> None:
        """``arrived`` is when the call came (``time.monotonic``), ``trace_id`` what its client knows it by."""
        self._arrived = arrived
        self._trace_id = trace_id
        self._first_at = self._last_at = 0.0
        self._first_tokens = self._tokens = 0

    def observe(self, entry: Entry) -> None:
        """Take note of an entry with text, when it comes."""
        if entry.kind != Kind.TEXT:
            return
        count = entry.token_count
        self._tokens += count
        self._last_at = time.monotonic()
        if not self._first_at:
            self._first_at, self._first_tokens = self._last_at, count

    def report(self) -> dict[str, Any]:
        """Return ``ttft_ms``, ``tps`` (None where there was nothing to measure) and ``trace_id``."""
        later_tokens = self._tokens - self._first_tokens
        first = self._first_at - self._arrived if self._first_at else None
        return _described(first, later_tokens, self._last_at - self._first_at, self._trace_id)

    def report_of(self, end: dict[str, Any], opened: float | None, ended: float) -> dict[str, Any]:
        """The same of an answer that came as a whole, by what its worker measured.

        ``end`` is its terminal entry, ``opened`` when a worker was seen to have taken it and ``ended`` when its end was
        here (``time.monotonic``). On a busy machine the first is seen late: the first token was here before the others.
        """
        timing, usage = end.get("timing"), end.get("usage") or {}
        if timing is None or opened is None:
            return _described(None, 0, 0.0, self._trace_id)
        generation = timing["generation_ms"] / 1000
        first = min(opened + timing["first_token_ms"] / 1000, ended - generation) - self._arrived
        return _described(first, usage.get("completion_tokens", 0) - 1, generation, self._trace_id)


def _described(first: float | None, tokens: int, seconds: float, trace_id: str) -> dict[str, Any]:
    return {
        "ttft_ms": None if first is None else round(first * 1000, 1),
        "tps": round(tokens / seconds, 1) if tokens > 0 and seconds > 0 else None,
        "trace_id": trace_id,
    }
