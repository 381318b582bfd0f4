"""Lists in pages, as OpenAI's clients read them."""

from typing import Any


def page(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page; the next one is asked for with its ``last_id``."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}
