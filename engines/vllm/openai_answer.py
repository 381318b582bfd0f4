"""What is changed in an answer of vLLM's OpenAI application: the model's name, and errors in OpenAI's words."""

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from engines.types import HttpCall, HttpPart, HttpStart
from engines.vllm.form_check import FormCheck, forms
from engines.vllm.refusal_words import explain

_MODEL = b'"model":"'
_DATA = b"data: "
#: How the event of an error begins: with OpenAI, and with Anthropic.
_ERRORS = (b'data: {"error"', b"event: error\n")
#: What the first chunk of a chat's stream holds; in texts its quotes are escaped.
_OPENING = b'"delta":{"role":"assistant","content":""}'
#: How the events of other APIs begin that say as much: Anthropic's, and those of responses.
_OPENING_EVENTS = (b"event: message_start\n", b"event: response.created\n", b"event: response.in_progress\n")
#: How vLLM refuses a form that it cannot compile; what follows is its library's own state.
_UNTOLD = ("Invalid grammar specification", "Grammar error")
#: How it refuses one that its library would not keep to, where an operator has named the library.
_UNSUPPORTED = "schema contains features not supported"
#: Members that ask for a form.
_FORMS = (b'"response_format"', b'"structured_outputs"', b'"tools"', b'"output_config"', b'"text":{')


class OpenAIAnswers:
    """Passes the answers of one engine's application on."""

    def __init__(self, check: FormCheck) -> None:
        self._check = check

    async def refusal(
        self, call: HttpCall, head: HttpStart, parts: AsyncGenerator[HttpStart | HttpPart, None]
    ) -> tuple[HttpStart, bytes]:
        """Return a refusal whole, in OpenAI's words; ``parts`` is what follows its head."""
        body = b"".join([part.data async for part in parts if isinstance(part, HttpPart)])
        error = _error_in(body)
        if error is None:
            return head, body
        # Its status may turn out to be another.
        status, document = await self._explain(call, head.status, error)
        return replace(head, status=status), encode(document)

    async def error_event(self, call: HttpCall, event: bytes) -> bytes:
        """Return an event of a stream that :func:`is_error`, in OpenAI's words."""
        first, separator, rest = event.partition(b"\n\n")
        head, _, document_before = first.partition(_DATA)
        error = _error_in(document_before)
        if error is None:
            return event
        code = error.get("code")
        _, document = await self._explain(call, code if isinstance(code, int) else 500, error)
        return head + _DATA + encode(document) + separator + rest

    async def late_refusal(self, call: HttpCall, event: bytes) -> tuple[HttpStart, bytes]:
        """Return the refusal that the first event of a stream tells: nothing has gone out yet."""
        error = _error_in(event.partition(b"\n\n")[0].partition(_DATA)[2]) or {}
        code = error.get("code")
        status, document = await self._explain(call, code if isinstance(code, int) and code >= 400 else 500, error)
        return HttpStart(status, "application/json"), encode(document)

    async def _explain(self, call: HttpCall, status: int, error: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and the document of a failure, found out to be the client's where it is."""
        if status >= 500 or any(words in str(error.get("message")) for words in _UNTOLD):
            fault = await self._check.judge(json.loads(call.body))
            if fault is not None:
                field, why = fault
                message = f"The form that is asked for in '{field}' cannot be used: {why}"
                return 400, openai_error(message, 400, field, "invalid_schema")
        message, param, word = explain(
            json.loads(call.body), str(error.get("message") or "The request was refused"), error.get("param")
        )
        if param is None and _UNSUPPORTED in message:
            param = next((form.field for form in forms(json.loads(call.body))), None)
            word = "invalid_schema"
        code = error.get("code")
        if word is None and isinstance(code, str) and not code.isdigit():
            word = code
        return status, openai_error(message, status, param, word)


def may_refuse_late(call: HttpCall) -> bool:
    """Whether vLLM may begin the stream of an answer and refuse it only then: forms are compiled once it has begun."""
    return any(word in call.body for word in _FORMS)


def is_opening(part: bytes) -> bool:
    """Whether a part of a stream says no more than that an answer begins."""
    return part.startswith(_OPENING_EVENTS) or _OPENING in part


def is_error(part: bytes) -> bool:
    """Whether a part of a stream is an event that tells an error. Called for every part: cheap."""
    return part.startswith(_ERRORS)


def openai_error(message: str, status: int, param: str | None, code: str | None) -> dict[str, Any]:
    """Return an error in OpenAI's shape: ``code`` is a word or null, never a number."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = "model_not_found" if status == 404 else code
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _error_in(body: bytes) -> dict[str, Any] | None:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return None
    return error if isinstance(error, dict) else None


def names_to_replace(call: HttpCall) -> tuple[bytes, bytes] | None:
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
