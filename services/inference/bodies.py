"""Which preparation each endpoint's body of ``/v1`` gets."""

from typing import Any

from engines.model_spec import ModelSpec
from services.inference import anthropic_body, openai_body, responses_body
from services.inference.openai_body import PreparedBody

_PREPARE = {
    "/v1/messages": anthropic_body.prepare,
    "/v1/messages/count_tokens": anthropic_body.prepare,
    "/tokenize": openai_body.prepare_text,
    "/detokenize": openai_body.prepare_text,
    "/v1/responses": responses_body.prepare,
    "/v1/responses/input_tokens": responses_body.prepare,
}


def prepare(path: str, body: dict[str, Any], spec: ModelSpec) -> PreparedBody:
    """Return what the engine gets for a checked body. Raises ``InvalidRequest``."""
    return _PREPARE.get(path, openai_body.prepare)(body, spec)
