"""Real answers from real vLLM, through HTTP and the unchanged ``openai`` client."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx
import openai
import pytest
from transformers import AutoTokenizer

from settings import ROOT
from testing.sse import events, text_of
from testing.stack import KEY, Process, Stack
from testing.waiting import until

INTRODUCTION = "你好！我是 CY-LLM Engine 自带的演示模型，只有两百万个参数。我会用中文和英文回答关于这个系统的简单问题。"
WHAT = (
    "CY-LLM Engine is a language model service that you run yourself. Flask takes the requests, Redis carries "
    "the text, Celery workers run the vLLM engine, and new LoRA adapters go live without a restart."
)


@pytest.fixture
def client(real_stack: Stack) -> Iterator[openai.OpenAI]:
    with real_stack.openai() as client:
        yield client


def ask(stack: Stack, prompt: str, **fields: Any) -> dict[str, Any]:
    """A greedy answer of the native API."""
    generation = {"temperature": 0, **fields.pop("generation", {})}
    with stack.http() as http:
        response = http.post(
            "/inference", json={"modelId": "demo", "prompt": prompt, "generation": generation, **fields}
        )
    assert response.status_code == 200, response.text
    return response.json()


def test_the_demo_model_answers_in_legible_sentences(real_stack: Stack) -> None:
    assert ask(real_stack, "你好，请介绍一下自己")["choices"][0]["text"] == INTRODUCTION
    assert ask(real_stack, "What is CY-LLM Engine?")["choices"][0]["text"] == WHAT
    assert ask(real_stack, "你好")["choices"][0] == {
        "index": 0,
        "text": "你好！有什么可以帮你？",
        "finish_reason": "stop",
    }


def test_usage_is_counted_by_the_tokenizer(real_stack: Stack) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "demo")
    messages = [{"role": "user", "content": "你好，请介绍一下自己"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    answer = ask(real_stack, "你好，请介绍一下自己")
    # The end-of-turn token is a token too.
    completion = len(tokenizer(INTRODUCTION)["input_ids"]) + 1
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": completion,
        "total_tokens": len(prompt) + completion,
    }


def test_temperature_zero_is_greedy_and_limits_hold(real_stack: Stack) -> None:
    prompt = "Tell me the story of the library"
    texts = {ask(real_stack, prompt)["choices"][0]["text"] for _ in range(3)}
    assert len(texts) == 1
    short = ask(real_stack, prompt, generation={"maxNewTokens": 7})
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 7
    assert texts.pop().startswith(short["choices"][0]["text"])


def test_the_stream_holds_the_same_text(real_stack: Stack) -> None:
    body = {"modelId": "demo", "prompt": "讲一个图书馆的故事", "generation": {"temperature": 0, "maxNewTokens": 400}}
    with real_stack.http() as http, http.stream("POST", "/inference/stream", json=body) as response:
        found = list(events(response))
    whole = ask(real_stack, "讲一个图书馆的故事", generation={"maxNewTokens": 400})["choices"][0]["text"]
    assert text_of(found) == whole
    # How many is the load's to say: a busy machine merges them.
    assert len(found) > 3
    assert whole.endswith("我根本没有注意到那场暴风雨。”")


@pytest.mark.parametrize("prompt", ["word " * 9000, "字" * 40_000])
def test_a_prompt_longer_than_the_context_is_refused(real_stack: Stack, prompt: str) -> None:
    for path in ("/inference", "/inference/stream"):
        with real_stack.http() as http:
            response = http.post(path, json={"modelId": "demo", "prompt": prompt})
        assert response.status_code == 400
        [detail] = response.json()["error"]["details"]
        assert (detail["field"], detail["type"]) == ("prompt", "prompt_too_long")
        assert "8192" in detail["description"]


def test_more_tokens_than_the_prompt_leaves_room_for(real_stack: Stack) -> None:
    body = {"modelId": "demo", "prompt": "word " * 2000, "generation": {"maxNewTokens": 7000}}
    with real_stack.http() as http:
        response = http.post("/inference", json=body)
    assert response.status_code == 400
    [detail] = response.json()["error"]["details"]
    assert (detail["field"], detail["type"]) == ("generation.maxNewTokens", "out_of_range")


def test_64_requests_share_one_batch(real_stack: Stack, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Tell me the story of the library"}]
    # Nobody reads on before all have a first token, and nobody's tokens end before that: so at one moment all 64 run.
    all_run = Barrier(64)

    def one(_: int) -> str:
        text = ""
        with client.chat.completions.create(
            model="demo",
            messages=messages,
            temperature=0,
            max_tokens=7000,
            extra_body={"ignore_eos": True},
            stream=True,
        ) as stream:
            for chunk in stream:
                if not text and chunk.choices[0].delta.content:
                    all_run.wait(60)
                text += chunk.choices[0].delta.content or ""
                if len(text) >= 200:
                    return text[:200]
        raise AssertionError(f"the answer ended after {len(text)} characters")

    with ThreadPoolExecutor(64) as pool:
        texts = list(pool.map(one, range(64)))
    assert set(texts) == {texts[0]}

    def peak() -> int:
        with real_stack.http() as http:
            engines = http.get("/health/details").json()["components"]["coordinator"]["details"]["engines"]
        [demo] = [engine for engine in engines if engine["model"] == "demo"]
        return int(demo["peakRunning"])

    until(lambda: peak() >= 60, 10, "the scheduler reports a batch of nearly all of the 64")


def test_openai_client_whole_and_streamed(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is CY-LLM Engine?"}]
    whole = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    assert whole.choices[0].message.content == WHAT
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    options: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model="default", messages=messages, temperature=0, stream=True, stream_options=options
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == WHAT
    assert chunks[-1].usage == whole.usage


def test_openai_errors_of_the_engine_pass_through(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x " * 9000}])
    assert "8192" in caught.value.message


def test_system_prompt_and_history_reach_the_template(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! How can I help you?"},
        {"role": "user", "content": "What is vLLM?"},
    ]
    answer = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    assert (answer.choices[0].message.content or "").startswith("vLLM is a fast inference engine.")


CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def test_the_synchronous_engine_serves_too(real_stack: Stack, client: openai.OpenAI) -> None:
    """``promptFormat: raw`` takes the prompt as it is, here with the template written by hand."""
    body = {
        "modelId": "stepped",
        "prompt": CHATML.format("你好，请介绍一下自己"),
        "generation": {"temperature": 0},
    }
    with real_stack.http() as http, http.stream("POST", "/inference/stream", json=body) as response:
        found = list(events(response))
    assert text_of(found) == INTRODUCTION
    # 29 tokens: the first by itself, then four at a time.
    assert len([event for event in found if event.data != "[DONE]"]) <= 10
    answer = client.chat.completions.create(
        model="stepped", temperature=0, messages=[{"role": "user", "content": "What is CY-LLM Engine?"}]
    )
    assert answer.choices[0].message.content == WHAT


def test_the_ladder_made_a_too_long_context_fit(real_stack: Stack) -> None:
    with real_stack.http() as http:
        listed = {model["id"]: model for model in http.get("/models").json()["models"]}
    assert listed["demo"]["maxModelLen"] == 8192
    assert 256 <= listed["stepped"]["maxModelLen"] < 8192
    [worker] = [process for process in real_stack.processes if process.name == "real"]
    steps = [line["message"] for line in worker.lines() if "trying again smaller" in line.get("message", "")]
    assert any("max_model_len 8192 ->" in step for step in steps)


def test_an_adapter_changes_the_answer(real_stack: Stack) -> None:
    body = {"modelId": "stepped", "prompt": CHATML.format("你好"), "generation": {"temperature": 0, "maxNewTokens": 8}}
    with real_stack.http() as http:
        plain = http.post("/inference", json=body).json()
        adapted = http.post("/inference", json={**body, "adapter": "loud"})
        missing = http.post("/inference", json={**body, "adapter": "nothing"})
        refused = http.post("/inference", json={"modelId": "demo", "prompt": "x", "adapter": "loud"})
        long_name = http.post("/inference", json={**body, "adapter": "字" * 100})
        broken = http.post("/inference", json={**body, "adapter": "broken"})
        after = http.post("/inference", json=body).json()
    assert adapted.status_code == 200, adapted.text
    assert long_name.json()["error"]["details"][0]["type"] == "adapter_not_found"
    assert broken.json()["error"]["details"][0]["type"] == "adapter_broken"
    assert after["choices"] == plain["choices"]
    assert adapted.json()["choices"][0]["text"] != plain["choices"][0]["text"]
    assert missing.json()["error"]["details"][0]["type"] == "adapter_not_found"
    assert refused.json()["error"]["details"][0]["type"] == "adapter_not_supported"


def test_log_lines_are_json_and_hold_no_prompt(real_stack: Stack) -> None:
    ask(real_stack, "What is Redis?", metadata={"traceId": "trace-log"})
    for process in real_stack.processes:

        def traced(client: Process = process) -> list[dict[str, Any]]:
            return [line for line in client.lines() if line.get("traceId") == "trace-log"]

        until(traced, 5, f"{process.name} wrote a line for the request")
        assert "What is Redis" not in process.log.read_text()


def test_an_answer_of_v1_tells_how_fast_it_came(real_stack: Stack) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Tell a story"}], "max_tokens": 60}
    with httpx.Client(
        base_url=real_stack.openai_base, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False
    ) as http:
        for path, more in (
            ("/chat/completions", {}),
            ("/completions", {"prompt": "x"}),
            ("/chat/completions", {"n": 2}),
            ("/messages", {}),
            ("/responses", {"input": "Tell a story"}),
        ):
            begun = time.monotonic()
            answer = http.post(path, json={**body, **more, "include_performance": True}, timeout=60)
            took = (time.monotonic() - begun) * 1000
            assert answer.status_code == 200, answer.text
            performance = answer.json()["performance"]
            assert performance["trace_id"] == answer.headers["x-request-id"]
            usage = answer.json()["usage"]
            tokens = usage.get("completion_tokens", usage.get("output_tokens"))
            # What it tells adds up to less than its client waited.
            assert 0 < performance["ttft_ms"] < took and performance["tps"] > 0
            assert performance["ttft_ms"] + (tokens - 2) / performance["tps"] * 1000 < took
        assert "performance" not in http.post("/chat/completions", json=body, timeout=60).json()
