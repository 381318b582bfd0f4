"""Ids that sort by the time that they were made at.

A list that goes on after an id finds its place although the thing of that id was deleted meanwhile: clients page
through a list and delete what they find.
"""

import re
import secrets
import time

#: Microseconds since 1970 in hex, then random digits.
_TIME_DIGITS, _RANDOM_BYTES = 14, 5
_REST = re.compile(f"[0-9a-f]{{{_TIME_DIGITS + 2 * _RANDOM_BYTES}}}")


def new_id(prefix: str) -> str:
    """Return ``prefix`` and 24 hex digits."""
    return f"{prefix}{time.time_ns() // 1000:0{_TIME_DIGITS}x}{secrets.token_hex(_RANDOM_BYTES)}"


def is_id(text: str, prefix: str) -> bool:
    """Whether ``text`` may have come from :func:`new_id`."""
    return text.startswith(prefix) and _REST.fullmatch(text[len(prefix) :]) is not None
