"""How a request of the native interface is sampled, and what vLLM refuses of that, by the interface's names."""

from collections.abc import Mapping
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams

from engines.errors import InvalidRequest
from engines.types import GenerateRequest
from engines.vllm.internals import form_of
from engines.vllm.refusal_words import explain

#: Values of a request that vLLM has under the same name.
_SAMPLING = (
    *("temperature", "top_p", "repetition_penalty", "top_k", "min_p"),
    *("presence_penalty", "frequency_penalty", "seed"),
)
#: The field that asks for a form.
FORM = "generation.responseFormat"
#: vLLM's names of values, and those of the native interface.
_NATIVE_NAMES = {
    "temperature": "generation.temperature",
    "top_p": "generation.topP",
    "top_k": "generation.topK",
    "min_p": "generation.minP",
    "repetition_penalty": "generation.repetitionPenalty",
    "presence_penalty": "generation.presencePenalty",
    "frequency_penalty": "generation.frequencyPenalty",
    "seed": "generation.seed",
    "stop": "generation.stop",
}


def sampling_params(request: GenerateRequest, defaults: Mapping[str, Any], max_tokens: int) -> SamplingParams:
    """Return the values for the engine; ``defaults`` are the model's own. Raises ``InvalidRequest``."""
    sampling = request.sampling
    asked = {name: getattr(sampling, name) for name in _SAMPLING}
    values = {**defaults, **{name: value for name, value in asked.items() if value is not None}}
    if values.get("temperature") == 0:
        values["top_p"] = 1.0
    if sampling.stop:
        values["stop"] = list(sampling.stop)
    try:
        values["structured_outputs"] = form_of(sampling.response_format)
        return SamplingParams(**values, max_tokens=max_tokens, output_kind=RequestOutputKind.DELTA)
    except ValueError as error:
        raise refused(request, error) from error


def refused(request: GenerateRequest, error: Exception) -> InvalidRequest:
    """Return what vLLM's refusal means to the client."""
    message, name, _ = explain(_NATIVE_NAMES, str(error), None)
    field = _NATIVE_NAMES.get(name or "", FORM if request.sampling.response_format else "generation")
    return InvalidRequest("invalid_value", field, message)
