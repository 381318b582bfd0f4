"""Where the sampling comes from that a request leaves out."""

from engines.model_spec import ModelSpec
from engines.types import Sampling
from services.inference.generation_defaults import NATIVE, OPENAI, complete, complete_openai

DOCUMENT = ModelSpec(id="m", model_path="m")
OWN = ModelSpec(id="m", model_path="m", generation_defaults="model", default_max_tokens="context")


def test_the_document_s_values_or_the_model_s() -> None:
    asked = Sampling(max_new_tokens=3, top_p=0.5)
    assert complete(asked, DOCUMENT) == Sampling(3, NATIVE["temperature"], 0.5, NATIVE["repetition_penalty"])
    assert complete(asked, OWN) == asked
    assert complete(Sampling(temperature=0.0), DOCUMENT).temperature == 0.0


def test_the_same_for_openai_bodies() -> None:
    assert complete_openai({"top_p": 0.5}, DOCUMENT) == {**OPENAI, "top_p": 0.5, "max_tokens": 256}
    assert complete_openai({"max_completion_tokens": 7}, DOCUMENT) == {**OPENAI, "max_completion_tokens": 7}
    assert complete_openai({"top_p": 0.5}, OWN) == {"top_p": 0.5}
