"""Which field vLLM means where it refuses a request, and its message in words of the request.

It names no field for many faults, for others its own parts (``input_tokens``), or the class of a union's member.
"""

import re
from collections.abc import Mapping
from typing import Any

#: OpenAI's word for a prompt that the context has no room for.
_TOO_LONG = "context_length_exceeded"
_CONTEXT = re.compile(r"maximum context length|maximum model length|exceeds .*max_model_len")
#: vLLM's names for a prompt, whatever field it came by.
_PROMPT_PARTS = ("input_tokens", "input_text", "prompt_token_ids")
#: Faults of a prompt that name none.
_PROMPT_FAULTS = re.compile(r"out of vocabulary|prompt cannot be empty|at least one prompt|^Input lengths")
_EMPTY = re.compile(r"^The .*prompt cannot be empty$")
#: Where each API has its prompt.
_PROMPTS = ("messages", "input", "prompt", "documents", "text_2", "query")
#: vLLM's words for a body that pydantic refused: where, and what is wrong there.
_VALIDATION = re.compile(r"'loc': 'body\.?([^']*)', 'msg': (?:'([^']*)'|\"([^\"]*)\")")
_PARAMETER = re.compile(r" \(parameter=[^()]*\)$")
#: A part of pydantic's path that is no field but a member of a union: a class, a type.
_MEMBER = re.compile(r"^[A-Z]|[\[\]()-]|^(?:str|int|float|bool|dict|list)$")


def explain(body: Mapping[str, Any], message: str, param: str | None) -> tuple[str, str | None, str | None]:
    """Return message, field and OpenAI's code for a refusal of ``body``; field and code are None where unknown."""
    if found := _VALIDATION.search(message):
        param = _field(found.group(1)) or param
        return f"{param or 'The body'}: {found.group(2) or found.group(3)}", param, None
    message = _PARAMETER.sub("", message)
    prompt = next((name for name in _PROMPTS if body.get(name) is not None), None)
    if _CONTEXT.search(message):
        return message, prompt if param in (None, *_PROMPT_PARTS) else param, _TOO_LONG
    if _PROMPT_FAULTS.search(message):
        param = prompt if param in (None, *_PROMPT_PARTS) else param
        return (f"{param or 'The prompt'}: a text must not be empty" if _EMPTY.match(message) else message), param, None
    if param == "logprobs" and body.get("top_logprobs") is not None:
        # Of the two, the number.
        param = "top_logprobs"
    if param is None:
        named = [name for name in body if _names(message, name)]
        param = named[0] if len(named) == 1 else None
    return message, param, None


def _names(message: str, field: str) -> bool:
    """Whether a message is about a field: a word like "model" or "stop" may be just a word of it."""
    if "_" in field:
        return re.search(rf"(?:\b|_){re.escape(field)}(?:\b|_)", message.replace(" ", "_")) is not None
    name = re.escape(field)
    return re.search(rf"^{name}\b|[`'\"]{name}[`'\"]|\b{name}=", message) is not None


def _field(path: str) -> str:
    return ".".join(part for part in path.split(".") if not _MEMBER.search(part))
