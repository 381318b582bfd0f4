"""The items of a conversation in OpenAI's Responses API, as the engine can read them.

Agents send back what they were answered, of this server and of others: parts that the engine would pass over are
joined, what it cannot read in a tool's answer gets a word for it, and calls of tools that OpenAI runs are left out.
"""

from typing import Any

from engines.model_spec import ModelSpec
from services.errors import InvalidRequest
from services.inference.openai_body import require_text, unreadable, without_nulls

Item = dict[str, Any]

#: Items that the engine reads; ``message`` is what has a role and no type.
_KNOWN = (
    "message",
    "reasoning",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
)


def readable(items: list[Item], spec: ModelSpec) -> list[Item]:
    """Return the items as the engine gets them. Raises ``InvalidRequest``."""
    found = []
    for index, item in enumerate(items):
        kind = item.get("type") or "message"
        if kind not in _KNOWN:
            if kind == "item_reference" or not isinstance(kind, str):
                description = "Items are not kept one by one here: send the item itself, or previous_response_id"
                raise InvalidRequest.of("unsupported_content", f"input[{index}].type", description)
            # The work of a tool that is not here.
            continue
        found.append(_readable(item, kind, f"input[{index}]", spec))
    return found


def _readable(item: Item, kind: str, field: str, spec: ModelSpec) -> Item:
    item = without_nulls(item)
    if kind in ("function_call_output", "custom_tool_call_output"):
        return {**item, "output": _output(item.get("output"))}
    if kind == "reasoning":
        return _thought(item)
    if kind == "function_call":
        return {"arguments": "{}", **item}
    if kind != "message":
        return item
    if not isinstance(item.get("role"), str):
        raise InvalidRequest.of("required", f"{field}.role", "A message needs a 'role'")
    content = item.get("content")
    require_text(content, spec, f"{field}.content")
    if item["role"] == "assistant" and not isinstance(content, str):
        item = {**item, "content": [{"type": "output_text", "text": _joined(content), "annotations": []}]}
    elif content is None or content == []:
        item = {**item, "content": ""}
    return item


def _thought(item: Item) -> Item:
    """Return a thought with one part: of several, the engine reads the first."""
    for name, kind in (("content", "reasoning_text"), ("summary", "summary_text")):
        if isinstance(item.get(name), list) and len(item[name]) > 1:
            item = {**item, name: [{"type": kind, "text": _joined(item[name])}]}
    return item


def _output(output: Any) -> Any:
    if not isinstance(output, list):
        return "" if output is None else output
    return "\n".join(_text(part) for part in output)


def _joined(parts: Any) -> str:
    return "".join(_text(part) for part in parts) if isinstance(parts, list) else ""


def _text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        for name in ("text", "refusal"):
            if isinstance(part.get(name), str):
                return str(part[name])
        return unreadable(part)
    return ""
