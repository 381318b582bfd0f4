"""What a request may come to, before it runs."""

from dataclasses import replace
from typing import Any

import pytest

from engines.model_spec import CONTEXT, ModelSpec
from services.errors import InvalidRequest
from services.inference.token_need import estimate, need_of_body, need_of_text
from services.limit_holders import Holder
from store.quota import Quota

SPEC = ModelSpec(id="m", model_path="none")
KEY = Holder("k", "This API key", 0, 0, 1000, None)
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x" * 36}]}


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        ("", 0),
        ("word", 1),
        ("words", 2),
        ("图书馆", 3),
        ("ab图", 2),
        ([1, 2, 3], 3),
        ([[1, 2], [3]], 3),
        ({"role": "user", "content": [{"type": "text", "text": "abcd"}]}, 3),
        (None, 0),
        (1.5, 0),
    ],
)
def test_estimates(part: Any, tokens: int) -> None:
    assert estimate(part) == tokens


def test_a_schema_as_deep_as_json_can_be_read() -> None:
    deep: Any = "abcd"
    for _ in range(20_000):
        deep = {"properties": [deep]}
    assert estimate(deep) == 1


def test_the_answer_is_the_clients_the_models_or_what_the_limit_leaves() -> None:
    prompt = 9 + 1 + 16
    asked, body = need_of_body({**CHAT, "max_tokens": 50}, {"max_tokens": 50}, SPEC, (KEY,))
    assert (asked.tokens, body["max_tokens"]) == (prompt + 50, 50)
    # The model file's number, which the body has by then.
    left_open, body = need_of_body({**CHAT, "max_tokens": 256}, {}, SPEC, (KEY,))
    assert (left_open.tokens, body["max_tokens"]) == (prompt + 256, 256)
    small, body = need_of_body({**CHAT, "max_tokens": 256}, {}, SPEC, (replace(KEY, tokens_per_minute=100),))
    assert (small.tokens, body["max_tokens"]) == (100, 100 - prompt)


def test_every_answer_of_every_prompt_counts() -> None:
    several, _ = need_of_body({"prompt": ["a", "b"], "n": 3, "max_tokens": 10}, {"max_tokens": 10}, SPEC, (KEY,))
    assert several.tokens == 2 + 16 + 6 * 10
    ids, _ = need_of_body({"prompt": [1, 2, 3], "max_tokens": 10}, {"max_tokens": 10}, SPEC, (KEY,))
    assert ids.tokens == 3 + 16 + 10


def test_an_answer_that_may_fill_the_context_is_bounded() -> None:
    unbounded = replace(SPEC, default_max_tokens=CONTEXT)
    need, body = need_of_body(CHAT, {}, unbounded, (replace(KEY, tokens_per_minute=100_000),))
    assert body["max_tokens"] == need.ceiling == 4096
    native = need_of_text("abcd", None, unbounded, (replace(KEY, tokens_per_minute=0, quota=Quota(500, "day")),))
    assert native.ceiling == 500 - 17


@pytest.mark.parametrize("wanted", [None, 5000])
def test_what_could_never_fit_is_refused_with_both_numbers(wanted: int | None) -> None:
    prompt = "x" * 8000 if wanted is None else "x"
    with pytest.raises(InvalidRequest, match=r"may use 1000 tokens a minute, and this request may need \d+") as refused:
        need_of_text(prompt, wanted, SPEC, (KEY,))
    assert refused.value.failure.details[0].field == "generation.maxNewTokens"
