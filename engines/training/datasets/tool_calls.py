"""Tools and calls in rows of OpenAI's kind, as chat templates take them."""

import json
from typing import Any

from engines.training.datasets.bad_row import BadRow, text
from text import quote

Tool = dict[str, Any]


def tools_of(row: dict[str, Any]) -> list[Tool]:
    """Return the tools that a row offers; ``functions`` is OpenAI's older name for them. Raises ``BadRow``."""
    given, field = row.get("tools"), "tools"
    if given in (None, [], "", "[]"):
        functions = row.get("functions")
        if functions in (None, [], "", "[]"):
            return []
        if not isinstance(functions, list):
            raise BadRow("functions", "must be a list of functions")
        given, field = [{"type": "function", "function": function} for function in functions], "functions"
    if isinstance(given, str):
        # Tables cannot hold schemas that differ: there they are text.
        try:
            given = json.loads(given)
        except ValueError:
            raise BadRow(field, "is text that is not JSON") from None
    if not isinstance(given, list):
        raise BadRow(field, "must be a list of tools")
    for index, tool in enumerate(given):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise BadRow(f"{field}[{index}]", "a tool is an object with a function, which has a name")
    return given


def calls_of(message: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """Return the calls of an assistant's message, their arguments as objects. Raises ``BadRow``."""
    given = message.get("tool_calls")
    if given in (None, [], ""):
        older = message.get("function_call")
        if older in (None, ""):
            return []
        return [_call({"function": older}, f"{field}.function_call")]
    if not isinstance(given, list):
        raise BadRow(f"{field}.tool_calls", "must be a list of calls")
    return [_call(call, f"{field}.tool_calls[{index}]") for index, call in enumerate(given)]


def _call(call: Any, field: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise BadRow(field, "a call is an object with a function")
    name, arguments = text(function.get("name"), f"{field}.function.name"), function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise BadRow(f"{field}.function.arguments", "is not JSON, and a model would learn to write it so") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise BadRow(f"{field}.function.arguments", f"must be an object, not {quote(type(arguments).__name__)}")
    found = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {**found, "id": call["id"]} if isinstance(call.get("id"), str) else found
