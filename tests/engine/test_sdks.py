"""What people's clients do, unchanged, on real vLLM and real training: each call once, each answer by its shape."""

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from settings import ROOT
from testing import tool_model
from testing.openai_shapes import Shapes, validate, validate_event
from testing.stack import GATEWAY_TOKEN, KEY, Stack
from testing.tool_model import transcripts
from testing.waiting import until

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

_DEMO = {"model_path": str(ROOT / "models" / "demo"), "enforce_eager": True, "kv_cache_memory_bytes": 2**26}
MODELS = {
    "default": "tools",
    "models": {
        "tools": tool_model.ENTRY,
        "demo": {**_DEMO, "max_model_len": 1024, "enableLora": True, "maxLoraRank": 8},
        "vectors": {**_DEMO, "max_model_len": 1024, "task": "embed"},
        "away": {**_DEMO, "max_model_len": 1024},
    },
}
#: Behind its thought the model writes an empty line.
COUNTED = "\n\n" + "\n".join(str(number) for number in range(1, 81))
CALLED = [["f", {"a": "x"}], ["g", {}]]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("sdks")
    env = {
        "CY_LLM_VAR": str(folder / "var"),
        "CY_LLM_OUTPUTS_ROOT": str(folder / "out"),
        "CY_LLM_ADAPTERS_ROOT": str(folder / "adapters"),
        "CY_LLM_STREAMS_PER_KEY": "100",
    }
    live = Stack(folder / "stack", MODELS, env=env)
    try:
        live.start_worker("first", ["--models", "tools,demo,vectors"], seconds=240)
        live.start_trainer()
        live.spawn_background()
        live.start_web()
        yield live
    finally:
        live.close()


@pytest.fixture
def sdk(stack: Stack) -> Iterator[openai.OpenAI]:
    with Shapes(trust_env=False, timeout=120) as http:
        yield openai.OpenAI(base_url=stack.openai_base, api_key=KEY, max_retries=0, http_client=http)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
    for name, properties in (("f", {"a": {"type": "string"}}), ("g", {}))
]


def calls_of(message: Any) -> list[Any]:
    return [[call.function.name, json.loads(call.function.arguments)] for call in message.tool_calls or []]


def test_openai_chat(sdk: openai.OpenAI) -> None:
    create = sdk.chat.completions.create
    whole = create(model="tools", messages=user(transcripts.COUNT), temperature=0, max_tokens=600)
    assert whole.choices[0].message.content == COUNTED and whole.choices[0].finish_reason == "stop"
    stream = create(model="tools", messages=user(transcripts.COUNT), temperature=0, max_tokens=600, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == COUNTED
    turns = user(transcripts.CALLS)
    answer = create(model="tools", messages=turns, temperature=0, max_tokens=600, tools=TOOLS).choices[0]
    assert calls_of(answer.message) == CALLED and answer.finish_reason == "tool_calls"
    turns.append(answer.message.to_dict())
    turns += [{"role": "tool", "tool_call_id": call.id, "content": "ok"} for call in answer.message.tool_calls or []]
    last = create(model="tools", messages=turns, temperature=0, max_tokens=600, tools=TOOLS)
    assert str(last.choices[0].message.content).strip() == transcripts.DONE[1]
    named: Any = {"type": "function", "function": {"name": "g"}}
    forced = create(model="tools", messages=user("x"), max_tokens=200, tools=TOOLS, tool_choice=named)
    assert [name for name, _ in calls_of(forced.choices[0].message)] == ["g"]
    scored = create(model="tools", messages=user("x"), temperature=0, max_tokens=600, logprobs=True, top_logprobs=2)
    logprobs = scored.choices[0].logprobs
    assert logprobs and logprobs.content and len(logprobs.content[0].top_logprobs) == 2
    two = create(model="tools", messages=user(transcripts.COUNT), n=2, seed=1, max_tokens=20)
    assert [choice.index for choice in two.choices] == [0, 1]


class Number(BaseModel):
    n: int


def test_openai_parsed(sdk: openai.OpenAI) -> None:
    parsed = sdk.chat.completions.parse(model="tools", messages=user("x"), response_format=Number, max_tokens=300)
    assert isinstance(parsed.choices[0].message.parsed, Number)


def test_openai_completions_and_embeddings(sdk: openai.OpenAI) -> None:
    text = sdk.completions.create(model="demo", prompt="Hello", max_tokens=5, temperature=0)
    assert text.usage and text.usage.completion_tokens == 5
    found = sdk.embeddings.create(model="vectors", input=["a", "b c"])
    assert len(found.data) == 2 and len(found.data[0].embedding) == len(found.data[1].embedding) > 10


def test_openai_responses_in_a_chain(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model="tools", input="My name is Kim.", temperature=0, max_output_tokens=300)
    second = sdk.responses.create(
        model="tools", input="x", previous_response_id=first.id, temperature=0, max_output_tokens=300
    )
    third = sdk.responses.create(
        model="tools", input="What is my name?", previous_response_id=second.id, temperature=0, max_output_tokens=300
    )
    assert third.output_text.strip() == "Your name is Kim."
    assert sdk.responses.retrieve(third.id).output_text == third.output_text


def test_openai_asynchronously(stack: Stack) -> None:
    async def main() -> tuple[set[str | None], str]:
        http = httpx.AsyncClient(trust_env=False, timeout=120)
        async with openai.AsyncOpenAI(base_url=stack.openai_base, api_key=KEY, http_client=http) as client:
            asked: Any = {"model": "tools", "messages": user(transcripts.COUNT), "temperature": 0, "max_tokens": 600}
            answers = await asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(6)))
            stream = await client.responses.create(
                model="tools", input=transcripts.COUNT, stream=True, temperature=0, max_output_tokens=600
            )
            events = [event.type async for event in stream]
            return {answer.choices[0].message.content for answer in answers}, events[-1]

    assert asyncio.run(main()) == ({COUNTED}, "response.completed")


def test_openai_files(sdk: openai.OpenAI) -> None:
    made = [sdk.files.create(file=(f"{n}.txt", b"x" * (n + 1)), purpose="user_data").id for n in range(5)]
    assert [file.id for file in sdk.files.list(limit=2, purpose="user_data")] == made[::-1]
    assert sdk.files.content(made[2]).content == b"xxx"
    for file_id in made:
        assert sdk.files.delete(file_id).deleted


def test_openai_fine_tuning(sdk: openai.OpenAI) -> None:
    rows = "\n".join(
        json.dumps({"messages": [*user("Who are you?"), {"role": "assistant", "content": "I am the captain."}]})
        for _ in range(12)
    )
    file = sdk.files.create(file=("train.jsonl", rows.encode()), purpose="fine-tune")
    params: Any = {"n_epochs": 8, "batch_size": 2, "learning_rate_multiplier": 25}
    job = sdk.fine_tuning.jobs.create(
        model="demo", training_file=file.id, method={"type": "supervised", "supervised": {"hyperparameters": params}}
    )
    until(lambda: sdk.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed"), 300, "it ends")
    done = sdk.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded" and done.fine_tuned_model, done
    answer = sdk.chat.completions.create(
        model=done.fine_tuned_model, messages=user("Who are you?"), temperature=0, max_tokens=30
    )
    assert answer.choices[0].message.content == "I am the captain."
    events = list(sdk.fine_tuning.jobs.list_events(job.id, limit=7))
    assert events[0].message == "The job has successfully completed"
    checkpoints = list(sdk.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [each.step_number for each in checkpoints] == [48, 42, 36]
    for each in checkpoints:
        model = each.fine_tuned_model_checkpoint
        assert sdk.models.retrieve(model).id == model
        assert sdk.chat.completions.create(model=model, messages=user("x"), max_tokens=2).model == model
    assert sdk.models.delete(done.fine_tuned_model).deleted


def test_openai_batch_of_two_hundred(sdk: openai.OpenAI) -> None:
    url: Any = "/v1/chat/completions"
    lines = []
    for number in range(200):
        body: dict[str, Any] = {"model": "demo", "messages": user(f"number {number}"), "max_tokens": 5}
        body |= {50: {"temperature": 9}, 100: {"model": "nope"}, 150: {"max_tokens": 5000}}.get(number, {})
        lines.append(json.dumps({"custom_id": f"r{number}", "method": "POST", "url": url, "body": body}))
    file = sdk.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h")
    until(lambda: sdk.batches.retrieve(batch.id).status == "completed", 180, "it is completed")
    done = sdk.batches.retrieve(batch.id)
    assert done.request_counts and (done.request_counts.completed, done.request_counts.failed) == (197, 3)
    answers = [json.loads(each) for each in sdk.files.content(str(done.output_file_id)).text.splitlines()]
    for each in answers:
        validate(each["response"]["body"])
    errors = [json.loads(each) for each in sdk.files.content(str(done.error_file_id)).text.splitlines()]
    assert [each["custom_id"] for each in errors] == ["r50", "r100", "r150"]
    assert len({each["custom_id"] for each in answers}) == 197


def test_openai_errors(stack: Stack, sdk: openai.OpenAI) -> None:
    create: Any = sdk.chat.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        create(model="tools", messages=user("x"), temperature=9)
    assert bad.value.param == "temperature" and bad.value.request_id
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="nope", messages=user("x"))
    assert missing.value.code == "model_not_found"
    with stack.openai("wrong") as nobody, pytest.raises(openai.AuthenticationError):
        nobody.models.list()
    with stack.openai(GATEWAY_TOKEN) as lesser, pytest.raises(openai.PermissionDeniedError):
        lesser.fine_tuning.jobs.list()
    headers = {"Idempotency-Key": "one"}
    create(model="demo", messages=user("x"), max_tokens=1, extra_headers=headers)
    with pytest.raises(openai.ConflictError):
        create(model="demo", messages=user("y"), max_tokens=1, extra_headers=headers)
    with pytest.raises(openai.InternalServerError) as away:
        create(model="away", messages=user("x"))
    assert away.value.status_code == 503


def test_openai_waits_out_a_429(stack: Stack) -> None:
    stack.start_web(
        CY_LLM_STREAMS_PER_KEY="1",
        CY_LLM_PORT=str(stack.port + 3000),
        CY_LLM_OPENAI_PORT=str(stack.openai_port + 3000),
    )
    base = f"http://127.0.0.1:{stack.openai_port + 3000}/v1"
    with httpx.Client(trust_env=False, timeout=60) as http:
        patient = openai.OpenAI(base_url=base, api_key=KEY, max_retries=4, http_client=http)
        hasty = patient.with_options(max_retries=0)
        asked: Any = {"model": "tools", "messages": user(transcripts.COUNT), "temperature": 0, "max_tokens": 600}
        stream = hasty.chat.completions.create(**asked, stream=True)
        next(stream)
        with pytest.raises(openai.RateLimitError) as refused:
            hasty.chat.completions.create(**asked)
        assert refused.value.response.headers["retry-after-ms"] == "1000"
        threading.Timer(0.5, lambda: [None for _ in stream]).start()
        assert patient.chat.completions.create(**asked).choices[0].message.content == COUNTED


def stripped(value: Any) -> Any:
    """Some clients strip what a model writes."""
    if isinstance(value, list):
        return [stripped(each) for each in value]
    return value.strip() if isinstance(value, str) else value


@pytest.fixture(scope="module")
def tried(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the other SDKs came to."""
    folder = tmp_path_factory.mktemp("sdk") / "venv"
    uv = Path(sys.executable).parent / "uv"
    python = str(folder / "bin" / "python")
    for command in (
        ["venv", "--quiet", "--python", sys.executable, str(folder)],
        ["pip", "install", "--quiet", "--python", python, "-r", "requirements-sdk.txt"],
    ):
        subprocess.run([str(uv), *command], cwd=ROOT, check=True, timeout=300)
    env = {"V1": stack.openai_base, "KEY": KEY, "MODEL": "tools", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(
        [python, str(ROOT / "testing" / "sdk_clients.py")],
        env={**env, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    named = {each["name"]: each for each in lines if "name" in each}
    return {**named, "answers": [each for each in lines if "answered" in each]}


@pytest.mark.parametrize("name", ["langchain chat", "langchain responses", "langchain anthropic"])
def test_langchain(tried: dict[str, Any], name: str) -> None:
    wanted = {"whole": COUNTED, "streamed": COUNTED, "tools": CALLED, "tools streamed": CALLED}
    for what, value in {**wanted, "tools sent back": transcripts.DONE[1]}.items():
        found = tried[f"{name}: {what}"]
        assert stripped(found.get("value")) == stripped(value), found


def test_langchain_further(tried: dict[str, Any]) -> None:
    assert tried["langchain chat: parsed"].get("value") == "Number", tried["langchain chat: parsed"]
    lengths = tried["langchain: embeddings"].get("value")
    assert lengths and lengths[0] == lengths[1] > 10, tried["langchain: embeddings"]


def test_litellm(tried: dict[str, Any]) -> None:
    wanted = {
        "whole": COUNTED,
        "streamed": COUNTED,
        "tools": CALLED,
        "thoughts": "I count.",
        "anthropic": COUNTED,
        "responses": "Hello Bo.",
    }
    for what, value in wanted.items():
        found = tried[f"litellm: {what}"]
        assert stripped(found.get("value")) == stripped(value), found


def test_every_answer_to_them_has_its_shape(tried: dict[str, Any]) -> None:
    checked: Counter[str] = Counter()
    for answer in tried["answers"]:
        path, body = answer["answered"], answer["body"]
        if body.startswith("{"):
            validate(json.loads(body))
            checked[path] += 1
            continue
        for line in body.splitlines():
            if line.startswith("data: {"):
                validate_event(path, json.loads(line[6:]))
                checked[f"{path} streamed"] += 1
    assert {path for path, count in checked.items() if count > 1} == {
        "/v1/chat/completions",
        "/v1/chat/completions streamed",
        "/v1/responses",
        "/v1/responses streamed",
    }, checked
    assert checked["/v1/embeddings"] == 1
    # Anthropic's own types are looked at where they are installed.
    theirs = {name: found for name, found in tried.items() if name.startswith("shapes: ")}
    assert set(theirs) == {"shapes: /v1/messages", "shapes: /v1/messages/count_tokens"}
    assert all("error" not in found for found in theirs.values()), theirs


def test_anthropic(tried: dict[str, Any]) -> None:
    wanted = {"whole": COUNTED, "streamed": [COUNTED, "end_turn"], "forced": ["f"], "counted": True}
    for what, value in wanted.items():
        found = tried[f"anthropic: {what}"]
        assert stripped(found.get("value")) == stripped(value), found
    assert tried["anthropic: unknown"]["error"].startswith("NotFoundError")
