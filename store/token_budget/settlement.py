"""What the process that ends a request tells of its tokens, where the request was measured by a limit."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from store.redis import keys as redis_keys
from store.redis.request_records import RequestRecord

#: Where a record's payload holds whose limits it was measured by.
FIELD = "token_limits"


def measured_by(holders: Iterable[str], tokens: int, counts_in_minute: bool) -> dict[str, Any]:
    """Return what a record's payload holds of its limits. ``holders``: their ids; ``tokens``: what is set aside."""
    return {"holders": list(holders), "tokens": tokens, "minute": counts_in_minute}


@dataclass(frozen=True)
class Settlement:
    """The argument of ``settle.lua``, and the keys that it touches; empty where no limit measures a request."""

    text: str = ""
    keys: tuple[str, ...] = ()


NOTHING = Settlement()


def settlement(record: RequestRecord, usage: dict[str, int] | None, final: bool) -> Settlement:
    """Return how a request is settled.

    ``usage``: all that it has used so far. ``final``: whether nothing follows, or the reserve only shall not be held
    for a client that left.
    """
    measured = record.payload.get(FIELD)
    if not measured:
        return NOTHING
    counts = usage or {}
    tokens = counts.get("prompt_tokens", 0) + counts.get("completion_tokens", 0)
    names = [(redis_keys.tokens(holder), redis_keys.token_reserves(holder)) for holder in measured["holders"]]
    holders = [{"hash": name, "open": open_name, "minute": measured["minute"]} for name, open_name in names]
    text = json.dumps({"id": record.id, "tokens": tokens, "final": final, "of": holders})
    return Settlement(text, tuple(name for pair in names for name in pair))
