"""Conversations in the spellings that people have, as messages with role and content."""

from typing import Any

from engines.training.datasets.bad_row import BadRow, text
from engines.training.datasets.tool_calls import calls_of
from text import quote

Message = dict[str, Any]

_ROLES = ("system", "user", "assistant", "tool")
#: OpenAI's newer name of a system message.
_SAME_ROLE = {"developer": "system", "function": "tool"}
#: ShareGPT's speakers.
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_CALLS = "is a tool call; those are learnt from rows of 'messages' alone: leave such rows out, or write them so"
#: Fields of a message that change what it means, and that would be lost.
_CALL_FIELDS = ("tool_calls", "function_call")


def messages(value: Any, field: str, with_calls: bool = False) -> tuple[list[Message], list[int]]:
    """Return the messages, and the indices of answers that must not be learnt (``weight`` 0). Raises ``BadRow``.

    ``with_calls``: whether calls of tools may be among them.
    """
    if not isinstance(value, list) or not value:
        raise BadRow(field, "must be a list of messages, each with role and content")
    found, unlearnt = [], []
    for index, message in enumerate(value):
        at = f"{field}[{index}]"
        if not isinstance(message, dict):
            raise BadRow(at, "a message must be an object with role and content")
        if "role" not in message and "from" in message:
            raise BadRow(at, "has 'from' where 'role' is expected; rows of ShareGPT's kind name them 'conversations'")
        calls = calls_of(message, at) if with_calls else []
        if not with_calls:
            _refuse_calls(message, at)
        role = _SAME_ROLE.get(str(message.get("role")), message.get("role"))
        if role not in _ROLES:
            raise BadRow(f"{at}.role", f"must be one of {', '.join(_ROLES)}, not {quote(message.get('role'))}")
        if _weight(message.get("weight"), f"{at}.weight") == 0:
            unlearnt.append(index)
        # An empty system message is what some tools always write.
        if calls and role != "assistant":
            raise BadRow(f"{at}.role", "only the assistant calls tools")
        may_be_empty = role in ("system", "tool") or bool(calls)
        turn: Message = {"role": role, "content": _content(message.get("content"), f"{at}.content", may_be_empty)}
        if calls:
            turn["tool_calls"] = calls
        elif with_calls and role == "tool":
            turn |= {name: message[name] for name in ("name", "tool_call_id") if isinstance(message.get(name), str)}
        found.append(turn)
    return found, unlearnt


def _refuse_calls(message: dict[str, Any], at: str) -> None:
    for name in _CALL_FIELDS:
        if message.get(name):
            raise BadRow(f"{at}.{name}", _CALLS)


def sharegpt(row: dict[str, Any]) -> list[Message]:
    """Return the messages of ``conversations``, a ``system`` beside them first. Raises ``BadRow``."""
    value = row["conversations"]
    if not isinstance(value, list) or not value:
        raise BadRow("conversations", "must be a list of turns, each with from and value")
    found = []
    for index, turn in enumerate(value):
        at = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise BadRow(at, "a turn must be an object with from and value")
        speaker, name = (turn.get("from"), "from") if "from" in turn else (turn.get("role"), "role")
        if speaker == "function_call":
            raise BadRow(f"{at}.{name}", _CALLS)
        role = _SPEAKERS.get(str(speaker))
        if role is None:
            raise BadRow(f"{at}.{name}", f"must be one of {', '.join(_SPEAKERS)}, not {quote(speaker)}")
        said = "value" if "value" in turn else "content"
        content = _content(turn.get(said), f"{at}.{said}", may_be_empty=role in ("system", "tool"))
        found.append({"role": role, "content": content})
    return with_system(row, found)


def with_system(row: dict[str, Any], found: list[Message]) -> list[Message]:
    """Put a system prompt that stands beside the turns before them. Raises ``BadRow``."""
    system = row.get("system", "")
    if system in (None, ""):
        return found
    if not isinstance(system, str):
        raise BadRow("system", f"must be text, not {type(system).__name__}")
    if found and found[0]["role"] == "system" and found[0]["content"] not in ("", system):
        raise BadRow("system", "stands beside the turns, and the turns begin with another one: leave one of them")
    rest = found[1:] if found and found[0]["role"] == "system" else found
    return [{"role": "system", "content": system}, *rest]


def refuse_tools(row: dict[str, Any]) -> None:
    """Raise ``BadRow`` for a row that brings tools: without them in the prompt it would teach something else."""
    for name in ("tools", "functions"):
        if row.get(name) not in (None, [], "", "[]"):
            description = "tools are put into the prompt of rows of 'messages' alone: leave them out, or such rows"
            raise BadRow(name, description)


def _weight(value: Any, field: str) -> int:
    if value is None:
        return 1
    if isinstance(value, bool) or value not in (0, 1):
        raise BadRow(field, "must be 0 (do not learn this answer) or 1")
    return int(value)


def _content(value: Any, field: str, may_be_empty: bool) -> str:
    """Return a message's text; parts of text are joined, as chat templates do."""
    if isinstance(value, list):
        parts = []
        for index, part in enumerate(value):
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
                parts.append(part["text"])
            else:
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise BadRow(f"{field}[{index}]", f"is a part of the kind {quote(kind)}; only text is trained on")
        value = "".join(parts)
    if value is None:
        value = ""
    return text(value, field, may_be_empty)
