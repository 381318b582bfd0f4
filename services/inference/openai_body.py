"""What becomes of an OpenAI body before it goes to the engine: defaults, priorities, and what its model cannot do."""

from dataclasses import dataclass
from typing import Any

from engines.registry import CONTEXT, ModelSpec
from services.errors import InvalidRequest

#: The interface document's defaults, for fields that the client leaves out.
_DEFAULTS = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.0}


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
    if "tools" in given:
        _check_tools(given, spec)
    if "max_tokens" not in given and "max_completion_tokens" not in given and spec.default_max_tokens != CONTEXT:
        given["max_tokens"] = spec.default_max_tokens
    return PreparedBody({**_DEFAULTS, **given}, priority)


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
