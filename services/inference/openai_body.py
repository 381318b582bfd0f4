"""What becomes of an OpenAI body before it goes to the engine: defaults, priorities, and what its model cannot do."""

import re
from dataclasses import dataclass
from typing import Any

from engines.model_spec import ModelSpec
from services.errors import InvalidRequest
from services.inference.generation_defaults import complete_openai

#: Keys of parts that are no text.
_MEDIA = re.compile(r"(_url|^image.*|^audio.*|^video.*|^input_audio|^file)\Z")
#: Where the endpoints that answer with numbers take texts.
_TEXT_FIELDS = ("messages", "input", "query", "queries", "documents", "text_1", "text_2", "data_1", "data_2")
#: Parts of a message that are text; agents send an assistant's refusal and reasoning back.
_TEXT_PARTS = (
    "text",
    "input_text",
    "output_text",
    "refusal",
    "thinking",
    "reasoning",
    "reasoning_text",
    "summary_text",
)


@dataclass(frozen=True)
class PreparedBody:
    """A body for vLLM's own application, and how urgent it is: 0 to 9, higher is served first."""

    body: dict[str, Any]
    priority: int


def prepare(body: dict[str, Any], spec: ModelSpec) -> PreparedBody:
    """Return what the engine gets for a checked body. Raises ``InvalidRequest``."""
    # A null is what a client sends that does not care.
    given = {key: value for key, value in body.items() if value is not None}
    priority = given.pop("priority", 0)
    if priority:
        # vLLM serves the lowest number first.
        given["priority"] = -priority
    if not spec.generates:
        for name in _TEXT_FIELDS:
            require_text(given.get(name), spec, name)
        return PreparedBody(_with_readable_turns(given), priority)
    if "tools" in given:
        _check_tools(given, spec)
    require_text(given.get("messages"), spec, "messages")
    return PreparedBody(complete_openai(_with_readable_turns(given), spec), priority)


def prepare_text(body: dict[str, Any], spec: ModelSpec) -> PreparedBody:
    """Return what the engine gets for a body that nothing is generated for. Raises ``InvalidRequest``."""
    given = {key: value for key, value in body.items() if value is not None}
    require_text(given.get("messages"), spec, "messages")
    return PreparedBody(_with_readable_turns(given), 0)


def unreadable(part: dict[str, Any]) -> str:
    """Return what stands for a part of a tool's answer that the model cannot read: a refusal would end the session."""
    return f"[{part.get('type') or 'part'} that this model cannot read]"


def _with_readable_turns(body: dict[str, Any]) -> dict[str, Any]:
    """Return a body whose conversation, where it has one, vLLM reads as it was meant."""
    turns = body.get("messages")
    if not isinstance(turns, list):
        return body
    read = [_with_arguments(without_nulls(turn)) if isinstance(turn, dict) else turn for turn in turns]
    return {**body, "messages": read}


def without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    """Return a turn, or an item, without the members that it had not: SDKs write them out when they send it back."""
    return {name: value for name, value in message.items() if value is not None or name == "content"}


def _with_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Return a turn whose calls have arguments: some clients send null for none, back and for ever."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    filled = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and function.get("arguments") is None:
            call = {**call, "function": {**function, "arguments": "{}"}}
        filled.append(call)
    return {**message, "tool_calls": filled}


def require_text(value: Any, spec: ModelSpec, field: str) -> None:
    """Refuse pictures and sounds: no model here is known to see, and their addresses would be fetched.

    A part of a message is text by its ``type``; vLLM also goes by the names of its keys where there is none.
    """
    if isinstance(value, list):
        for index, part in enumerate(value):
            require_text(part, spec, f"{field}[{index}]")
        return
    if not isinstance(value, dict):
        return
    if "content" in value:
        require_text(value["content"], spec, f"{field}.content")
        return
    media = [key for key in value if _MEDIA.search(key)]
    kind = value.get("type")
    if media or (kind is not None and kind not in _TEXT_PARTS):
        shown = media[0] if media else str(kind)[:64]
        description = f"Model '{spec.id}' reads text alone: a part must be 'text', not '{shown}'"
        raise InvalidRequest.of("unsupported_content", f"{field}.type", description)


def _check_tools(given: dict[str, Any], spec: ModelSpec) -> None:
    if not given["tools"]:
        # Agents send an empty list where they have none.
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            given.pop(name, None)
        return
    choice = given.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        # Who must be called gets arguments that fit: vLLM pins them only for a tool that says so.
        given["tools"] = [_strict(tool) for tool in given["tools"]]
    require_tools(spec, choice)


def require_tools(spec: ModelSpec, choice: Any) -> None:
    """Refuse tools that a model cannot call. ``choice``: OpenAI's ``tool_choice``. Raises ``InvalidRequest``."""
    if choice == "auto" and spec.tool_call_parser is not None and not spec.enable_auto_tools:
        description = (
            f"Model '{spec.id}' does not choose tools by itself: its entry in the model file has 'enable_auto_tools' "
            "off. Name a tool in tool_choice, or send 'required' or 'none'"
        )
        raise InvalidRequest.of("tools_not_supported", "tool_choice", description)
    if choice != "none" and spec.tool_call_parser is None:
        description = (
            f"Model '{spec.id}' cannot call tools: its entry in the model file has no 'tool_call_parser'. "
            "Let an operator set one, or send no tools, or tool_choice 'none'"
        )
        raise InvalidRequest.of("tools_not_supported", "tools", description)


def _strict(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, dict) or function.get("strict") is not None:
        return tool
    return {**tool, "function": {**function, "strict": True}}
