"""Which field a refusal of vLLM means: vLLM's own sentences, as 0.32 writes them."""

from typing import Any

import pytest

from engines.vllm.refusal_words import explain

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
INPUT: dict[str, Any] = {"model": "m", "input": ["a"]}
LONG = "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097 input tokens."


@pytest.mark.parametrize(
    ("body", "message", "param", "field", "code"),
    [
        (CHAT, LONG, "input_tokens", "messages", "context_length_exceeded"),
        (INPUT, LONG, "input_text", "input", "context_length_exceeded"),
        ({"query": "q", "documents": ["a"]}, LONG, "input_tokens", "documents", "context_length_exceeded"),
        ({**CHAT, "top_k": -2}, "top_k must be 0 (disable), or at least 1, got -2.", None, "top_k", None),
        ({**INPUT, "dimensions": 8}, "dimensions must be unset (received dimensions=8).", None, "dimensions", None),
        ({"prompt": [9]}, "Token id 9 is out of vocabulary", None, "prompt", None),
        ({**CHAT, "logprobs": True, "top_logprobs": 21}, "Requested 21, max 20", "logprobs", "top_logprobs", None),
        ({**CHAT, "structured_outputs": {}}, "one kind for structured outputs", None, "structured_outputs", None),
        ({"text_1": ["a", "b"], "text_2": ["a"]}, "Input lengths must be either 1:1, 1:N or N:N", None, "text_2", None),
        ({**CHAT, "n": 0}, "n must be at least 1, got 0.", None, "n", None),
        ({**CHAT, "stop": [""]}, "`stop` cannot contain an empty string", None, "stop", None),
        # A word of the sentence.
        ({**CHAT, "stop": "x"}, "This model cannot stop there", None, None, None),
        # Two fields are named, or none: nobody is blamed.
        ({**CHAT, "top_k": 2, "min_p": 1}, "top_k and min_p do not go together", None, None, None),
        (CHAT, "something else", None, None, None),
    ],
)  # fmt: skip
def test_the_field_is_named(
    body: dict[str, Any], message: str, param: str | None, field: str | None, code: str | None
) -> None:
    assert explain(body, message, param) == (message, field, code)


def test_places_in_the_body_are_fields_alone() -> None:
    said = "[{'loc': 'body.messages.0.ChatCompletionDeveloperMessageParam.content', 'msg': 'Input should be text'}]"
    assert explain(CHAT, said, None) == ("messages.0.content: Input should be text", "messages.0.content", None)
    said = "[{'loc': 'body.prompt.list[int].0', 'msg': \"Input should be 'a'\"}]"
    assert explain(CHAT, said, None) == ("prompt.0: Input should be 'a'", "prompt.0", None)


def test_what_vllm_writes_for_itself_is_left_out() -> None:
    message, _, _ = explain(CHAT, "Must be less (parameter=n, value=3)", "n")
    assert message == "Must be less"
    message, field, _ = explain(INPUT, "The decoder prompt cannot be empty", None)
    assert (message, field) == ("input: a text must not be empty", "input")
