"""How many tokens a request may come to, before it runs: its prompt, estimated, and the most its answer may have."""

from dataclasses import dataclass
from typing import Any

from engines.model_spec import ModelSpec
from services.errors import InvalidRequest
from services.limit_holders import Holder

#: Letters of a token, where they are of the Latin kind; of other scripts each character is one.
_LETTERS_PER_TOKEN = 4
#: What a chat template adds.
_TEMPLATE_TOKENS = 16
#: Where bodies hold what becomes part of the prompt.
_PROMPT_FIELDS = (
    "messages",
    "prompt",
    "input",
    "system",
    "instructions",
    "tools",
    "query",
    "queries",
    "documents",
    "text_1",
    "text_2",
    "data_1",
    "data_2",
)
#: What bodies call the most that an answer may have.
_MAXIMA = ("max_completion_tokens", "max_tokens", "max_output_tokens")
#: What is assumed of an answer that may fill the model's context.
_UNBOUNDED_ANSWER = 4096


@dataclass(frozen=True)
class TokenNeed:
    """What is set aside for a request."""

    tokens: int
    #: The most that its answer may have, where the limits allow less than it would have.
    ceiling: int | None = None


def need_of_text(prompt: Any, wanted: int | None, spec: ModelSpec, measured: tuple[Holder, ...]) -> TokenNeed:
    """As :func:`need_of_body`, of a native request; ``wanted``: the tokens of its answer that it asks for."""
    return _need(estimate(prompt) + _TEMPLATE_TOKENS, wanted, 1, spec, measured, "generation.maxNewTokens")


def need_of_body(
    body: dict[str, Any], given: dict[str, Any], spec: ModelSpec, measured: tuple[Holder, ...]
) -> tuple[TokenNeed, dict[str, Any]]:
    """Return what a body of ``/v1`` needs, and the body with the answers that the limits allow.

    ``given`` is the body as its client sent it: a maximum that it names is never changed. Raises ``InvalidRequest``
    where the request is larger than a limit, and so would never be served.
    """
    prompt = sum(estimate(body[name]) for name in _PROMPT_FIELDS if name in body) + _TEMPLATE_TOKENS
    if not spec.generates:
        return _need(prompt, 0, 1, spec, measured, "input"), body
    field = next((name for name in _MAXIMA if body.get(name) is not None), None)
    wanted = body[field] if field and given.get(field) is not None else None
    need = _need(prompt, wanted, _answers(body), spec, measured, field or "max_tokens")
    if need.ceiling is not None:
        body = {**body, field or "max_tokens": need.ceiling}
    return need, body


def estimate(part: Any) -> int:
    """Return about how many tokens a part of a prompt has; ids of tokens are one each."""
    total, parts = 0, [part]
    # Not by recursion: a tool's schema may be as deep as JSON can be read.
    while parts:
        value = parts.pop()
        if isinstance(value, str):
            foreign = len(value) - len(value.encode("ascii", "ignore"))
            total += foreign + -(-(len(value) - foreign) // _LETTERS_PER_TOKEN)
        elif isinstance(value, list):
            parts += value
        elif isinstance(value, dict):
            parts += value.values()
        elif isinstance(value, int):
            total += 1
    return total


def _answers(body: dict[str, Any]) -> int:
    """How many answers a body asks for: ``n`` of each of its prompts."""
    prompts = body.get("prompt")
    several = isinstance(prompts, list) and prompts and not isinstance(prompts[0], int)
    return (len(prompts) if several and prompts else 1) * max(1, body.get("n") or 1)


def _need(
    prompt: int, wanted: int | None, answers: int, spec: ModelSpec, measured: tuple[Holder, ...], field: str
) -> TokenNeed:
    default = spec.default_max_tokens if isinstance(spec.default_max_tokens, int) else _UNBOUNDED_ANSWER
    for holder in measured:
        for limit, name in _limits(holder):
            if prompt + (wanted or 0) * answers > limit or prompt + answers > limit:
                description = (
                    f"{holder.name} may use {limit} tokens a {name}, and this request may need "
                    f"{prompt + (wanted or 1) * answers}: about {prompt} of the prompt and {(wanted or 1) * answers} "
                    "of the answer"
                )
                raise InvalidRequest.of("exceeds_token_limit", field, description)
            default = min(default, (limit - prompt) // answers)
    if wanted is not None:
        return TokenNeed(prompt + wanted * answers)
    return TokenNeed(prompt + default * answers, default)


def _limits(holder: Holder) -> list[tuple[int, str]]:
    found = [(holder.tokens_per_minute, "minute")] if holder.tokens_per_minute else []
    return found + ([(holder.quota.tokens, holder.quota.period)] if holder.quota else [])
