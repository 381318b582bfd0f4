"""What is changed in an answer of vLLM's OpenAI application: the model's name, and errors in OpenAI's words."""

import json
import re
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from engines.types import HttpCall, HttpStart

_MODEL = b'"model":"'
_DATA = b"data: "
_ERROR = b'data: {"error"'
#: What xgrammar, outlines and vLLM's own checks say of a schema that cannot be compiled.
_SCHEMA = re.compile(
    r"grammar|json.?schema|xgrammar|structured.?output|\$ref|minItems|maxItems|regex|Regex", re.IGNORECASE
)
#: Fields of a body that ask for an answer of a certain form.
_FORM_FIELDS = ("structured_outputs", "response_format", "guided_json", "guided_regex", "guided_grammar", "tools")
_TYPES = {400: "invalid_request_error", 404: "invalid_request_error", 422: "invalid_request_error"}


async def as_openai_answers(
    call: HttpCall, parts: AsyncGenerator[HttpStart | bytes, None]
) -> AsyncGenerator[HttpStart | bytes, None]:
    """Pass ``parts`` on; errors in OpenAI's words, and the model under the name that was asked for."""
    names = _names(call)
    async for part in parts:
        if isinstance(part, HttpStart):
            if part.status >= 400:
                async for rest in _refusal(call, part, parts):
                    yield rest
                return
            yield part
        elif part.startswith(_ERROR):
            yield _error_event(call, part)
        else:
            yield part if names is None else part.replace(*names, 1)


def _names(call: HttpCall) -> tuple[bytes, bytes] | None:
    """Return what the answer calls the model, and what it shall; None where they are the same."""
    if call.asked_name is None:
        return None
    served = json.loads(call.body)["model"]
    if served == call.asked_name:
        return None
    # The name stands before all text of the answer, so that the first one found is it.
    return _MODEL + _inner(served) + b'"', _MODEL + _inner(call.asked_name) + b'"'


def _inner(name: str) -> bytes:
    return json.dumps(name, ensure_ascii=False)[1:-1].encode()


async def _refusal(
    call: HttpCall, head: HttpStart, parts: AsyncGenerator[HttpStart | bytes, None]
) -> AsyncGenerator[HttpStart | bytes, None]:
    """Yield a refusal whole: its status may turn out to be another."""
    body = b"".join([part async for part in parts if isinstance(part, bytes)])
    try:
        document = json.loads(body)
        error = document["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        yield head
        yield body
        return
    status = 400 if head.status >= 500 and refuses_schema(call, message) else head.status
    yield replace(head, status=status)
    yield json.dumps({"error": openai_error(error, status, call)}, ensure_ascii=False).encode()


def _error_event(call: HttpCall, event: bytes) -> bytes:
    first, separator, rest = event.partition(b"\n\n")
    try:
        error = json.loads(first.removeprefix(_DATA))["error"]
        status = int(error.get("code") or 500)
    except (ValueError, KeyError, TypeError, AttributeError):
        return event
    if status >= 500 and refuses_schema(call, str(error.get("message"))):
        status = 400
    found = {"error": openai_error(error, status, call)}
    return _DATA + json.dumps(found, ensure_ascii=False).encode() + separator + rest


def refuses_schema(call: HttpCall, message: str) -> bool:
    """Whether a failure is that of the form that the client asked for: vLLM makes some of them its own."""
    body = json.loads(call.body)
    return any(body.get(name) for name in _FORM_FIELDS) and _SCHEMA.search(message) is not None


def openai_error(error: dict[str, Any], status: int, call: HttpCall) -> dict[str, Any]:
    """Return vLLM's error in OpenAI's shape: ``code`` is a word or null, never a number."""
    message = str(error.get("message") or "The request was refused")
    code = error.get("code")
    word = code if isinstance(code, str) and not code.isdigit() else None
    if status == 400 and refuses_schema(call, message):
        word = "invalid_schema"
    elif status == 404:
        word = "model_not_found"
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": message, "type": kind, "param": error.get("param"), "code": word}
