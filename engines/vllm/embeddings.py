"""Vectors as vLLM's application makes them, with what it leaves out of OpenAI's contract put right."""

import json
from dataclasses import replace
from typing import Any

from engines.types import HttpCall

PATH = "/v1/embeddings"
_DIMENSIONS = b'"dimensions"'


def without_own_size(call: HttpCall, model_config: Any) -> HttpCall:
    """Return a call that does not ask for vectors of the model's own size.

    Clients send it always; vLLM refuses any size for a model whose vectors cannot be shortened.
    """
    if call.path != PATH or _DIMENSIONS not in call.body:
        return call
    body = json.loads(call.body)
    if body.get("dimensions") != model_config.embedding_size:
        return call
    del body["dimensions"]
    return replace(call, body=json.dumps(body).encode())
