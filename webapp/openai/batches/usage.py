"""The tokens of a batch's answers, added up."""

from typing import Any

_NAMES = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


def add(total: dict[str, int], body: dict[str, Any]) -> None:
    """Add what an answer says that it used, in either of OpenAI's shapes."""
    used = body.get("usage")
    if not isinstance(used, dict):
        return
    into = used.get("prompt_tokens_details") or used.get("input_tokens_details") or {}
    out = used.get("completion_tokens_details") or used.get("output_tokens_details") or {}
    values = (
        used.get("prompt_tokens", used.get("input_tokens")),
        into.get("cached_tokens"),
        used.get("completion_tokens", used.get("output_tokens")),
        out.get("reasoning_tokens"),
    )
    for name, value in zip(_NAMES, values, strict=True):
        total[name] = total.get(name, 0) + (value if isinstance(value, int) else 0)


def describe(total: dict[str, int]) -> dict[str, Any] | None:
    """Return it in OpenAI's shape; None before the first answer."""
    if not total:
        return None
    read, written = total.get("input_tokens", 0), total.get("output_tokens", 0)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": total.get("cached_tokens", 0)},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": total.get("reasoning_tokens", 0)},
        "total_tokens": read + written,
    }
