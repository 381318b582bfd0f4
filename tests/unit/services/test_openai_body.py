"""What becomes of an OpenAI body before an engine sees it."""

import pytest

from engines.model_spec import ModelSpec
from services.errors import InvalidRequest
from services.inference.openai_body import prepare, prepare_text


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}},
        {"image_url": {"url": "http://10.0.0.1/"}},
        {"type": None, "image_url": "http://10.0.0.1/"},
        {"type": "text", "text": "x", "video_url": {"url": "http://10.0.0.1/"}},
        {"type": "input_audio", "input_audio": {}},
        {"audio_url": {}},
        {"type": 7},
    ],
)
def test_what_is_no_text_is_refused_whatever_its_type_says(part: dict) -> None:
    for task, body in (
        ("generate", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]}),
        ("embed", {"messages": [{"role": "user", "content": [part]}]}),
        ("score", {"query": "x", "documents": {"content": [part]}}),
    ):
        with pytest.raises(InvalidRequest) as caught:
            prepare(body, ModelSpec(id="m", model_path="m", task=task))
        [detail] = caught.value.failure.details
        assert detail.type == "unsupported_content" and "content[" in detail.field


def test_texts_pass_in_every_shape() -> None:
    spec = ModelSpec(id="m", model_path="m")
    parts = [{"type": "text", "text": "x"}, {"text": "y"}, {"type": "refusal", "refusal": "no"}]
    body = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": parts}, {"role": "tool"}]}
    assert prepare(body, spec).body["messages"] == body["messages"]
    pooled = {"input": ["x", [1, 2]], "documents": [{"content": [{"type": "text", "text": "x"}]}]}
    assert prepare(pooled, ModelSpec(id="m", model_path="m", task="embed")).body == pooled


def test_members_that_an_answer_had_not_are_left_out() -> None:
    """SDKs write them out as nulls, and send the turn back so."""
    answer = {"role": "assistant", "content": None, "tool_calls": None, "function_call": None, "refusal": None}
    body = {"messages": [answer]}
    spec = ModelSpec(id="m", model_path="m")
    embedder = ModelSpec(id="m", model_path="m", task="embed")
    for prepared in (prepare(body, spec), prepare_text(body, spec), prepare(body, embedder)):
        assert prepared.body["messages"] == [{"role": "assistant", "content": None}]
