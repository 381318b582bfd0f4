"""Keys of the model file that reach vLLM: its template, its sampling, and any engine argument."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from settings import ROOT
from testing.stack import KEY, Stack
from tests.engine.conftest import serving

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

_DEMO = {"modelPath": str(ROOT / "models" / "demo"), "enforceEager": True, "kvCacheMemoryBytes": 2**25}
_SHORT = {"engineArgs": {"max_num_batched_tokens": 2048, "seed": 7}, "maxModelLen": 1024}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("keys")
    greedy = folder / "greedy"
    shutil.copytree(ROOT / "models" / "demo", greedy)
    (greedy / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.01}))
    (folder / "shout.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system here') }}{% endif %}"
        "{{ m.content | upper }}{% endfor %}"
    )
    models = {
        "words": {**_DEMO, **_SHORT, "aliases": ["talk"], "chatTemplate": str(folder / "shout.jinja")},
        "own": {**_DEMO, **_SHORT, "modelPath": str(greedy), "generationDefaults": "model", "maxLogprobs": 2},
    }
    with serving(folder / "stack", models) as stack:
        yield stack


@pytest.fixture
def post(stack: Stack) -> Iterator[Any]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=stack.openai_base, headers=headers, timeout=60, trust_env=False) as client:
        yield lambda path, **body: client.post(path, json=body)


def test_the_template_of_the_model_file_is_used(stack: Stack, post: Any) -> None:
    chat = post("/chat/completions", model="talk", max_tokens=1, messages=[{"role": "user", "content": "hello"}])
    assert chat.status_code == 200, chat.text
    plain = post("/completions", model="words", max_tokens=1, prompt="HELLO")
    with stack.http() as native:
        body = {"modelId": "words", "prompt": "hello", "generation": {"maxNewTokens": 1}}
        own = native.post("/inference", json=body).json()
    counts = [answer["usage"]["prompt_tokens"] for answer in (chat.json(), plain.json(), own)]
    # vLLM's completion endpoint may add the tokenizer's first token.
    assert counts[0] == counts[2] and counts[1] - counts[0] in (0, 1)


def test_a_conversation_that_the_template_refuses(stack: Stack, post: Any) -> None:
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    assert "No system here" in post("/chat/completions", model="words", messages=messages).json()["error"]["message"]
    with stack.http() as native:
        answer = native.post("/inference", json={"modelId": "words", "messages": messages})
    assert answer.status_code == 400, answer.text
    [detail] = answer.json()["error"]["details"]
    assert detail["field"] == "messages" and "No system here" in detail["description"]


def test_the_models_own_sampling_is_the_default_where_asked(stack: Stack, post: Any) -> None:
    messages = [{"role": "user", "content": "Tell me a story"}]

    def texts(model: str, **values: Any) -> set[str]:
        answers = [post("/chat/completions", model=model, max_tokens=12, messages=messages, **values) for _ in range(4)]
        return {answer.json()["choices"][0]["message"]["content"] for answer in answers}

    # Its generation_config.json all but chooses the likeliest token.
    assert len(texts("own")) == 1
    assert len(texts("own", temperature=1.5)) > 1
    with stack.http() as native:
        body = {"modelId": "own", "prompt": "Tell me a story", "generation": {"maxNewTokens": 12}}
        assert len({native.post("/inference", json=body).json()["choices"][0]["text"] for _ in range(4)}) == 1


def test_limits_of_the_model_file_hold(post: Any) -> None:
    messages = [{"role": "user", "content": "x"}]
    refused = post("/chat/completions", model="own", messages=messages, logprobs=True, top_logprobs=3)
    assert refused.status_code == 400, refused.text
    picture = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]
    refused = post("/chat/completions", model="own", messages=[{"role": "user", "content": picture}])
    assert refused.status_code == 400 and "image_url" in refused.json()["error"]["message"]
