"""What becomes of a body of OpenAI's Responses API before it goes to the engine."""

from typing import Any

from engines.model_spec import CONTEXT, GenerationDefaults, ModelSpec
from services.errors import InvalidRequest
from services.inference.generation_defaults import OPENAI
from services.inference.openai_body import PreparedBody, require_tools
from services.inference.response_items import readable

PATH = "/v1/responses"
#: Tools that the model calls and the client runs; those that OpenAI runs itself are left out, as agents expect.
_OURS = ("function", "custom")


def prepare(body: dict[str, Any], spec: ModelSpec) -> PreparedBody:
    """Return what the engine gets for a checked body, whose input is a list of items. Raises ``InvalidRequest``."""
    given = {key: value for key, value in body.items() if value is not None}
    given["input"] = readable(given["input"], spec)
    if not given["input"]:
        raise InvalidRequest.of("invalid_value", "input", "There is nothing in it that the model could read")
    last = given["input"][-1]
    if last.get("role") == "assistant" and last.get("status") in ("in_progress", "incomplete"):
        # The engine goes on with it: there is no more to think about, whatever templates and parsers call that.
        options = given.get("chat_template_kwargs") or {}
        given["chat_template_kwargs"] = {**options, "enable_thinking": False, "thinking": False}
    # Ours are kept here, whichever worker made them.
    given["store"] = False
    priority = given.pop("priority", 0)
    if priority:
        # vLLM serves the lowest number first.
        given["priority"] = -priority
    _prepare_tools(given, spec)
    if "max_output_tokens" not in given and spec.default_max_tokens != CONTEXT:
        given["max_output_tokens"] = spec.default_max_tokens
    if spec.generation_defaults != GenerationDefaults.MODEL:
        given = {**OPENAI, **given}
    return PreparedBody(given, priority)


def response_id(request_id: str) -> str:
    """Return the id of the response that a request makes."""
    return f"resp_{request_id.removeprefix('gen-')}"


def _prepare_tools(given: dict[str, Any], spec: ModelSpec) -> None:
    choice = given.get("tool_choice", "auto")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    for index, tool in enumerate(given.get("tools", [])):
        if not isinstance(tool.get("type"), str):
            raise InvalidRequest.of("required", f"tools[{index}].type", "A tool needs a 'type', such as 'function'")
    tools = [tool for tool in given.pop("tools", []) if tool.get("type") in _OURS]
    names = [tool.get("name") for tool in tools]
    if isinstance(choice, dict) and kind not in _OURS:
        description = f"Must be none, auto, required, or name a tool of the type {' or '.join(_OURS)}"
        raise InvalidRequest.of("invalid_value", "tool_choice", description)
    if isinstance(choice, dict) and choice.get("name") not in names:
        known = ", ".join(map(str, names)) or "none"
        raise InvalidRequest.of("invalid_value", "tool_choice", f"Must name one of the tools ({known})")
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise InvalidRequest.of("invalid_value", "tool_choice", "Must be none, auto, required, or name a tool")
    if not tools:
        if kind not in ("none", "auto"):
            raise InvalidRequest.of("invalid_value", "tool_choice", "A tool must be called, and there are no 'tools'")
        given.pop("tool_choice", None)
        return
    require_tools(spec, choice if isinstance(choice, str) else "required")
    if kind not in ("none", "auto"):
        # vLLM pins the arguments only of a tool that says so.
        tools = [{**tool, "strict": True} if tool["type"] == "function" else tool for tool in tools]
    given["tools"] = tools
