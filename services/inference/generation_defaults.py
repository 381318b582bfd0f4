"""The sampling that a request leaves out: the interface document's values, or the model's own."""

from dataclasses import replace
from typing import Any

from engines.model_spec import CONTEXT, GenerationDefaults, ModelSpec
from engines.types import Sampling

#: The document's values for ``/api/v1`` and gRPC, and for ``/v1``.
NATIVE = {"temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.0}
OPENAI = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.0}


def complete(sampling: Sampling, spec: ModelSpec) -> Sampling:
    """Return what the engine gets; the worker fills what is still open from the model."""
    if spec.generation_defaults == GenerationDefaults.MODEL:
        return sampling
    open_values: dict[str, Any] = {name: value for name, value in NATIVE.items() if getattr(sampling, name) is None}
    return replace(sampling, **open_values)


def complete_openai(body: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Return an OpenAI body with what the engine shall take where the client named nothing."""
    if "max_tokens" not in body and "max_completion_tokens" not in body and spec.default_max_tokens != CONTEXT:
        body = {**body, "max_tokens": spec.default_max_tokens}
    return body if spec.generation_defaults == GenerationDefaults.MODEL else {**OPENAI, **body}
