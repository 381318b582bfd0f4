"""Texts continued by real vLLM: what evaluation tools ask of ``/v1/completions``."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from store.token_log import log as token_log
from testing.joined import as_joined, joined
from testing.stack import KEY, Stack

PATH = "/v1/completions"
PROMPT = "The capital of France is"


@pytest.fixture
def post(real_stack: Stack) -> Iterator[Any]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=real_stack.openai_base, headers=headers, timeout=60, trust_env=False) as client:
        yield lambda **body: client.post(
            "/completions", json={"model": "demo", "prompt": PROMPT, "temperature": 0, **body}
        )


@pytest.mark.parametrize("new", [0, 1, 3])
def test_echo_with_logprobs_scores_the_prompt(post: Any, real_stack: Stack, new: int) -> None:
    fields = {"echo": True, "logprobs": 1, "max_tokens": new}
    answer = post(**fields)
    assert answer.status_code == 200, answer.text
    whole = answer.json()
    [choice] = whole["choices"]
    lists = choice["logprobs"]
    count = whole["usage"]["prompt_tokens"] + new
    assert whole["usage"]["completion_tokens"] == new and choice["finish_reason"] == "length"
    assert choice["text"].startswith(PROMPT) and "".join(lists["tokens"]) == choice["text"]
    assert {len(lists[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")} == {count}
    assert lists["token_logprobs"][0] is None and all(value <= 0 for value in lists["token_logprobs"][1:])
    assert lists["text_offset"] == sorted(lists["text_offset"]) and lists["text_offset"][0] == 0
    streamed = post(**fields, stream=True, stream_options={"include_usage": True})
    assert joined(PATH, streamed.text) == as_joined(PATH, whole)
    # What is metered is what is told.
    end = token_log.last(real_stack.client, f"gen-{whole['id'].partition('-')[2]}")
    assert end is not None and end.json()["usage"]["completion_tokens"] == new


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"best_of": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"suffix": " end"}, "suffix"),
        ({"suffix": " end", "echo": True}, "suffix"),
        ({"logprobs": 99}, "logprobs"),
    ],
)
def test_what_cannot_be_done_is_refused(post: Any, fields: dict[str, Any], param: str) -> None:
    answer = post(**{"max_tokens": 2, **fields})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_a_client_cannot_say_that_it_has_the_beginning(post: Any, real_stack: Stack) -> None:
    """The mark of a request that is gone on with is ours alone: with it a prompt would be taken for output."""
    workers = {worker.instance_id for worker in real_stack.fleet().living}
    plain = post(max_tokens=3).json()
    for count in (99, 3, -1, 10**12):
        marked = {"max_tokens": 3, "vllm_xargs": {"cy_llm_delivered": count}}
        answer = post(**marked)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"] == plain["choices"] and answer.json()["usage"] == plain["usage"]
        assert post(**marked, echo=True, logprobs=1).status_code == 200
    assert {worker.instance_id for worker in real_stack.fleet().living} == workers


def test_nulls_and_the_one_best_are_as_nothing(post: Any) -> None:
    plain = post(max_tokens=2).json()["choices"][0]["text"]
    for fields in ({"suffix": None, "best_of": None}, {"best_of": 1, "n": 1}):
        answer = post(max_tokens=2, **fields)
        assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == plain


def test_logprobs_0_are_those_of_the_chosen_tokens(post: Any) -> None:
    lists = post(max_tokens=3, logprobs=0).json()["choices"][0]["logprobs"]
    assert len(lists["token_logprobs"]) == 3 and all(value <= 0 for value in lists["token_logprobs"])
