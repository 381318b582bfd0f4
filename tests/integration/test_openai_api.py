"""``/v1`` on the fake engine: the relay, its errors and its auth. The real one is in ``tests/engine``."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from testing.fake_text import expected_text
from testing.stack import GATEWAY_TOKEN, KEY, Stack


@pytest.fixture
def client(fake_stack: Stack) -> Iterator[openai.OpenAI]:
    with fake_stack.openai(GATEWAY_TOKEN) as opened:
        yield opened


def test_chat_answers_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=[{"role": "user", "content": "a b"}], model="fake", max_tokens=4)
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.content == expected_text("a b", 4)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 6


def test_chat_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        messages=[{"role": "user", "content": "a b"}], model="slow", max_tokens=4, stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected_text("a b", 4)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_default_model_and_256_tokens(fake_stack: Stack) -> None:
    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {KEY}"}) as http:
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": None}
        answer = http.post(f"{fake_stack.openai_base}/chat/completions", json=body).json()
    assert answer["model"] == "fake"
    assert answer["usage"]["completion_tokens"] == 256


def test_silence_before_the_first_token_is_bridged_with_comments(fake_stack: Stack) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "model": "paused", "max_tokens": 1, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        httpx.Client(trust_env=False, headers=headers, timeout=30) as http,
        http.stream("POST", f"{fake_stack.openai_base}/chat/completions", json=body) as response,
    ):
        lines = [line for line in response.iter_lines() if line]
    assert sum(1 for line in lines if line.startswith(":")) >= 4
    assert lines[-1] == "data: [DONE]"


def test_models_and_health(client: openai.OpenAI, fake_stack: Stack) -> None:
    assert {model.id for model in client.models.list()} == {"fake", "slow", "paused", "tiny"}
    assert client.models.retrieve("fake").id == "fake"
    # How long a history may be: what clients cut theirs by.
    assert client.models.retrieve("tiny").to_dict()["max_model_len"] == 64
    assert all(model.to_dict()["max_model_len"] for model in client.models.list())
    health = httpx.get(f"http://127.0.0.1:{fake_stack.openai_port}/health", trust_env=False)
    assert health.json() == {"status": "ok"}


def test_errors_have_openais_shape(client: openai.OpenAI, fake_stack: Stack) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(messages=[{"role": "user", "content": "x"}], model="nope")
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as empty:
        client.chat.completions.create(messages=[], model="fake")
    assert empty.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(messages=[{"role": "user", "content": "x"}], model="fake", temperature=3)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.InternalServerError) as idle:
        client.chat.completions.create(messages=[{"role": "user", "content": "x"}], model="idle")
    assert idle.value.status_code == 503
    with fake_stack.openai("wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
