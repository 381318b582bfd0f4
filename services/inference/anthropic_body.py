"""What becomes of a body of Anthropic's API before it goes to the engine.

vLLM makes a chat request of it. What it would drop without a word on that way is put into words here, or refused.
"""

from typing import Any

from engines.model_spec import GenerationDefaults, ModelSpec
from services.errors import InvalidRequest
from services.inference.generation_defaults import OPENAI
from services.inference.openai_body import PreparedBody, require_tools, unreadable

#: What Anthropic's body can say of sampling, where the client says nothing.
_SAMPLING = {name: OPENAI[name] for name in ("temperature", "top_p")}
#: Members of a schema without a type, which may let it be something else than an object.
_OTHER_THAN_OBJECTS = ("anyOf", "oneOf", "allOf", "enum", "const", "$ref", "not")
#: Blocks that vLLM reads, or passes over with reason.
_BLOCKS = ("text", "tool_use", "tool_result", "thinking", "redacted_thinking", "tool_addition", "tool_removal")


def prepare(body: dict[str, Any], spec: ModelSpec) -> PreparedBody:
    """Return what the engine gets for a checked body. Raises ``InvalidRequest``."""
    given = {key: value for key, value in body.items() if value is not None}
    messages = [_message(message, f"messages.{index}", spec) for index, message in enumerate(given["messages"])]
    given["messages"] = _joined_turns(messages)
    _check_beginning(given)
    if isinstance(given.get("system"), list):
        given["system"] = [_system(block, index, spec) for index, block in enumerate(given["system"])]
    if given.get("mcp_servers"):
        description = "Servers of tools are not called here: list their tools under 'tools', and run them yourself"
        raise InvalidRequest.of("unsupported_content", "mcp_servers", description)
    choice = given.get("tool_choice") or {"type": "auto"}
    if not given.get("tools"):
        if choice.get("type") in ("any", "tool"):
            raise InvalidRequest.of("invalid_value", "tool_choice", "A tool must be called, and there are no 'tools'")
        given.pop("tools", None)
        given.pop("tool_choice", None)
    else:
        forced = choice.get("type") in ("any", "tool")
        for index, tool in enumerate(given["tools"]):
            _require_object(tool.get("input_schema"), f"tools.{index}.input_schema.type")
        require_tools(spec, "none" if choice.get("type") == "none" else "required" if forced else "auto")
        if choice.get("type") == "tool":
            _require_named(choice.get("name"), given["tools"])
        if forced:
            # vLLM pins the arguments only of a tool that says so.
            given["tools"] = [{"strict": True, **tool} for tool in given["tools"]]
    if "max_tokens" in given and spec.generation_defaults != GenerationDefaults.MODEL:
        given = {**_SAMPLING, **given}
    return PreparedBody(given, 0)


def _joined_turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns with those of one side in a row as one, as Anthropic reads them."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if turns and message["role"] == turns[-1]["role"] and message["role"] in ("user", "assistant"):
            turns[-1] = {**turns[-1], "content": [*_blocks(turns[-1]), *_blocks(message)]}
        else:
            turns.append(message)
    return turns


def _blocks(message: dict[str, Any]) -> list[Any]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _require_object(schema: Any, field: str) -> None:
    """What a tool is called with is an object in every answer."""
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind != "object" and (kind is not None or any(word in schema for word in _OTHER_THAN_OBJECTS)):
        raise InvalidRequest.of("invalid_value", field, "Must be 'object': a tool's input is one")


def _check_beginning(given: dict[str, Any]) -> None:
    last = given["messages"][-1]
    if last["role"] == "assistant" and (given.get("thinking") or {}).get("type") == "enabled":
        description = "A begun answer cannot be thought about: leave 'thinking' out, or end with a user's turn"
        raise InvalidRequest.of("invalid_value", "thinking", description)


def _system(block: Any, index: int, spec: ModelSpec) -> dict[str, Any]:
    found = _block(block, f"system.{index}", spec)
    if found["type"] != "text":
        raise InvalidRequest.of("unsupported_content", f"system.{index}.type", "Must be 'text' here")
    return found


def _require_named(name: Any, tools: list[dict[str, Any]]) -> None:
    names = [tool.get("name") for tool in tools]
    if name not in names:
        raise InvalidRequest.of(
            "invalid_value", "tool_choice.name", f"Must be one of the tools: {', '.join(map(str, names))}"
        )


def _message(message: dict[str, Any], field: str, spec: ModelSpec) -> dict[str, Any]:
    if isinstance(message["content"], str):
        return message
    content = []
    for index, block in enumerate(message["content"]):
        content.append(_block(block, f"{field}.content.{index}", spec))
    return {**message, "content": content}


def _block(block: Any, field: str, spec: ModelSpec) -> dict[str, Any]:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise InvalidRequest.of("invalid_value", f"{field}.type", "A block is an object with a 'type'")
    if kind == "tool_result":
        return {**block, "content": _result(block, field)}
    if kind == "text" and not isinstance(block.get("text"), str):
        raise InvalidRequest.of("required", f"{field}.text", "A block of text needs its 'text'")
    if kind in _BLOCKS:
        return dict(block)
    text = _text_of(block)
    if text is None:
        description = f"Model '{spec.id}' reads text alone: a block must be 'text', not '{kind[:64]}'"
        raise InvalidRequest.of("unsupported_content", f"{field}.type", description)
    return {"type": "text", "text": text}


def _result(block: dict[str, Any], field: str) -> str:
    """Return a tool's answer as text; that it is an error has no other place in a chat."""
    content = block.get("content") or ""
    if not isinstance(content, str | list) or any(part is None for part in content):
        raise InvalidRequest.of("invalid_value", f"{field}.content", "Must be text, or a list of blocks")
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {"type": "text", "text": str(part)} for part in content]
        content = "\n".join(_readable(part) for part in parts)
    return f"Error: {content}" if block.get("is_error") else str(content)


def _readable(part: dict[str, Any]) -> str:
    text = _text_of(part)
    return unreadable(part) if text is None else text


def _text_of(part: dict[str, Any]) -> str | None:
    """Return the text that a block is, or holds; None where it is something else."""
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "tool_reference", "tool_name": str(name)}:
            return name
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            return text
        case {"type": "document", "source": {"type": "content", "content": str(text)}}:
            return text
        case {"type": "document", "source": {"type": "content", "content": list(parts)}}:
            return _joined(parts)
        case {"type": "search_result", "content": list(parts)}:
            found = _joined(parts)
            title = part.get("title")
            return f"{title}\n{found}" if found is not None and title else found
        case _:
            return None


def _joined(parts: list[Any]) -> str | None:
    texts = [_text_of(part) if isinstance(part, dict) else None for part in parts]
    return None if None in texts else "\n".join(text for text in texts if text is not None)
