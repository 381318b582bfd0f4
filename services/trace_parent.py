"""The trace that a client's call belongs to (W3C Trace Context, https://www.w3.org/TR/trace-context/)."""

import re

_HEADER = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


def trace_id_of(traceparent: str | None) -> str:
    """Return the trace's id, 32 hex digits; '' where there is none, or the header is none of the standard's."""
    found = _HEADER.fullmatch((traceparent or "").strip())
    return found[1] if found else ""
