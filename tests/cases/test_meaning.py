"""Meaning: what a client of that API expects to happen."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from store.token_log import log as token_log
from store.token_log import outcomes
from testing.stack import KEY, Stack
from tests.cases.product import MAX_GAP_SECONDS, BackgroundStream, Client

pytestmark = pytest.mark.full

_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("pause", [0.0, 3.0])
def test_17_a_key_after_a_dropped_connection(client: Client, product: Stack, pause: float) -> None:
    body = {"model": "demo", "max_tokens": 512, "ignore_eos": True, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"Idempotency-Key": f"dropped-{pause}"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{product.openai_base}/chat/completions",
            json=body,
            headers={**headers, "Authorization": f"Bearer {KEY}"},
            timeout=httpx.Timeout(10, read=0.1),
            trust_env=False,
        )
    time.sleep(pause)
    again = client.post("/v1/chat/completions", body, native=False, **headers)
    assert again.status_code == 200, again.text
    assert again.json()["usage"]["completion_tokens"] == 512
    third = client.post("/v1/chat/completions", body, native=False, **headers)
    assert third.json()["id"] == again.json()["id"], "what ended well is not made again"


def test_17_native_a_dropped_request_is_taken_up_again(client: Client, product: Stack) -> None:
    body = {"modelId": "demo", "prompt": "hi", "generation": {"maxNewTokens": 8000, "temperature": 2.0}}
    headers = {"Idempotency-Key": "native-dropped"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{product.base}/api/v1/inference",
            json=body,
            headers={**headers, "Authorization": f"Bearer {KEY}"},
            timeout=httpx.Timeout(10, read=0.02),
            trust_env=False,
        )
    again = client.post("/api/v1/inference", body, **headers)
    assert again.status_code == 200, again.text
    assert again.json()["choices"][0]["finish_reason"] in ("length", "stop")


def test_17_what_would_fail_again_is_not_begun_anew(client: Client, product: Stack) -> None:
    """A request that killed its workers, or took all its time, keeps its stored end."""
    body = {"model": "demo", "max_tokens": 3, "messages": [{"role": "user", "content": "poison"}]}
    headers = {"Idempotency-Key": "poison"}
    first = client.post("/v1/chat/completions", body, native=False, **headers)
    assert first.status_code == 200
    [record] = [key for key in product.client.scan_iter("cy:req:*") if first.json()["id"][9:].encode() in key]
    request_id = record.decode().removeprefix("cy:req:")
    for failure, begun_anew in ((outcomes.given_up(3), False), (outcomes.deadline_passed(9), False)):
        product.client.delete(f"cy:log:{request_id}")
        token_log.end(product.client, request_id, 600, outcomes.failed(failure))
        again = client.post("/v1/chat/completions", body, native=False, **headers)
        assert (again.status_code == 200) is begun_anew, again.text


def test_18_a_key_on_a_training(client: Client, data: Path) -> None:
    (data / "twice.jsonl").write_text('{"text": "a b c"}\n')
    body = {"baseModel": "demo", "datasetPath": "twice.jsonl", "outputDir": "twice", "hyperParams": {"loraRank": 8}}
    found = [client.post("/api/v1/training/start", body, **{"Idempotency-Key": "k2"}).json()["jobId"] for _ in range(2)]
    assert found[0] == found[1]
    client.post(f"/api/v1/training/cancel/{found[0]}", {})


def test_22_a_hand_placed_adapter_is_a_model(client: Client) -> None:
    placed = client.chat(model="h2", temperature=0)
    assert placed.status_code == 200, placed.text
    assert placed.json()["model"] == "h2"
    assert placed.json()["choices"] != client.chat(temperature=0).json()["choices"]
    for name in ("nope", "../h2", "h2/../..", "/", "h2/adapter_config.json"):
        assert client.chat(model=name).status_code == 404, name


def test_an_adapter_cannot_have_a_model_s_name(client: Client, data: Path) -> None:
    (data / "named.jsonl").write_text('{"text": "a b c"}\n')
    for name in ("demo", "assistant", "default"):
        refused = client.train("named.jsonl", name=name)
        assert refused.status_code == 400
        assert refused.json()["error"]["details"][0]["type"] == "name_taken"


def test_27_tools(client: Client) -> None:
    for values in ({"tools": [_TOOL]}, {"tools": [_TOOL], "tool_choice": "required"}):
        refused = client.chat(**values)
        assert refused.status_code == 400
        assert "'tool_call_parser'" in refused.json()["error"]["message"]
        assert refused.json()["error"]["param"] == "tools"
    for values in ({"tools": []}, {"tools": [], "tool_choice": "auto"}, {"tools": [_TOOL], "tool_choice": "none"}):
        assert client.chat(**values).status_code == 200


def test_28_the_other_endpoints(client: Client) -> None:
    whole = client.post("/v1/completions", {"model": "demo", "prompt": "x", "max_tokens": 3}, native=False)
    assert whole.json()["object"] == "text_completion"
    streamed = client.post("/v1/completions", {"model": "demo", "prompt": "x", "stream": True}, native=False)
    assert streamed.text.rstrip().endswith("data: [DONE]")
    assert client.post("/v1/completions", {"model": "demo"}, native=False).json()["error"]["param"] == "prompt"
    for_another_task = client.post("/v1/embeddings", {"model": "demo", "input": "x"}, native=False)
    assert for_another_task.status_code == 400 and "embed" in for_another_task.json()["error"]["message"]
    for path in ("/v1/moderations", "/v1/images/generations", "/v1/audio/speech"):
        missing = client.post(path, {"model": "demo", "input": "x"}, native=False)
        assert missing.status_code == 404
        assert "/v1/completions" in missing.json()["error"]["message"]


def test_30_aliases(client: Client, product: Stack) -> None:
    listed = {model["id"]: model for model in client.request("GET", f"{client.openai}/v1/models").json()["data"]}
    assert listed["assistant"]["root"] == listed["org/assistant"]["root"] == "demo"
    assert "default" not in listed
    assert client.chat(model="assistant").json()["model"] == "assistant"
    streamed = client.chat(model="org/assistant", stream=True)
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert {event["model"] for event in events} == {"org/assistant"}


def test_36_tokens_when_the_client_gives_none(client: Client) -> None:
    for given in ({}, {"max_tokens": None}):
        body = {"model": "demo", "ignore_eos": True, "messages": [{"role": "user", "content": "x"}], **given}
        answer = client.post("/v1/chat/completions", body, native=False).json()
        assert answer["usage"]["completion_tokens"] == 256
        assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"priority": -1000000}, 400),
        ({"priority": 10}, 400),
        ({"priority": "flex"}, 400),
        ({"priority": 9}, 200),
        ({"service_tier": "priority"}, 200),
    ],
)
def test_37_priority_has_bounds(client: Client, values: dict[str, object], status: int) -> None:
    assert client.chat(**values).status_code == status


@pytest.mark.parametrize(
    "values",
    [
        {"stream_options": {"include_usage": True}},
    ],
)
def test_57_stream_options_without_stream(client: Client, values: dict[str, object]) -> None:
    assert client.chat(**values).status_code == 400
    assert client.chat(stream=False, stream_options=None).status_code == 200


def test_58_parts_nulls_and_tool_turns(client: Client) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "null"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": [{"type": "text", "text": "3"}]},
        {"role": "user", "name": "bob", "content": ""},
    ]
    nulls = ["functions", "function_call", "logit_bias", "stop", "n", "seed", "tools", "tool_choice", "response_format"]
    body = {**dict.fromkeys([*nulls, "metadata", "parallel_tool_calls"]), "user": "", "store": False, "x_extra": 1}
    whole = client.chat(messages=messages, **body)
    assert whole.status_code in (200, 400), whole.text
    call["function"] = {"name": "f", "arguments": "{}"}
    assert client.chat(messages=messages, **body).status_code == 200
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    started = time.monotonic()
    assert client.chat(messages=[{"role": "user", "content": [image]}]).status_code == 400
    assert time.monotonic() - started < 2
    assert client.chat(messages=[{"role": "user", "content": []}]).status_code in (200, 400)


@pytest.mark.parametrize(
    "values",
    [
        {"logit_bias": {"999999": 5, "-1": 5}},
        {"stop_token_ids": [999999999999]},
        {"allowed_token_ids": []},
        {"bad_words": [""]},
        {"min_tokens": 99999},
        {"stop": [""]},
        {"seed": 10**20},
        {"top_k": -5},
        {"n": 100000},
        {"logprobs": True, "top_logprobs": 10**6},
        {"prompt_logprobs": 10**6},
        {"structured_outputs": [1]},
        {"response_format": "json"},
        {"tools": ["x"], "tool_choice": "none"},
    ],
)
def test_59_odd_values_cost_only_their_request(client: Client, product: Stack, values: dict[str, object]) -> None:
    [worker] = product.fleet().living
    refused = client.chat(**values)
    assert refused.status_code == 400, refused.text
    assert client.chat().status_code == 200
    assert product.fleet().living[0].instance_id == worker.instance_id


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#"}, {"type": "array", "minItems": 100000}, {"type": "nope"}, {"type": "string", "pattern": "("}],
)
@pytest.mark.parametrize("field", ["structured_outputs", "response_format"])
def test_66_a_schema_that_cannot_be_used(client: Client, product: Stack, schema: dict[str, Any], field: str) -> None:
    wanted = {
        "structured_outputs": {"json": schema},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }[field]
    refused = client.chat(**{field: wanted})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["type"] == "invalid_request_error"
    streamed = client.chat(stream=True, **{field: wanted})
    assert "invalid_request_error" in streamed.text
    assert "Internal" not in refused.text + streamed.text
    lines = [line for process in product.processes for line in process.lines() if line.get("message") == "Request done"]
    assert lines[-1]["outcome"] == "refused"


def test_66_a_good_schema_is_followed(client: Client) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    # The grammar allows any white space between the marks, and the demo model, which knows no JSON, now and then
    # writes nothing else until its tokens are spent: such an answer ends with "length" and is asked for again.
    choices = (client.chat(max_tokens=100, structured_outputs={"json": schema}).json()["choices"][0] for _ in range(8))
    finished = next(choice for choice in choices if choice["finish_reason"] == "stop")
    assert json.loads(finished["message"]["content"])["a"] in (True, False)


def test_67_the_first_of_its_kind_stops_nobody(client: Client, product: Stack) -> None:
    other = Client(product)
    kinds = ({"logprobs": True, "top_logprobs": 5}, {"prompt_logprobs": 5}, {"logprobs": True, "top_logprobs": 3})
    with BackgroundStream(product) as stream:
        for values in (*kinds, {"frequency_penalty": 1}, {"structured_outputs": {"json": {"type": "object"}}}):
            assert other.chat(**values).status_code == 200
    other.close()
    assert stream.longest < MAX_GAP_SECONDS
    warmed = [line for process in product.processes for line in process.lines() if line.get("message") == "Warmed up"]
    assert warmed and warmed[0]["kinds"]["logprobs"] >= 0


def test_no_message_names_an_option_of_vllm_s_command_line(client: Client) -> None:
    for values in ({"tools": [_TOOL]}, {"logprobs": True, "top_logprobs": 10**6}, {"max_tokens": 10**6}):
        assert not re.search(r"--[a-z]", client.chat(**values).text)


def test_curl_of_the_banner_form(product: Stack) -> None:
    done = subprocess.run(
        [
            *("curl", "-sN", "--noproxy", "*", "-X", "POST", f"{product.base}/api/v1/inference/stream"),
            *("-H", "Content-Type: application/json", "-H", f"X-API-Key: {KEY}"),
            *("-d", '{"modelId": "demo", "prompt": "你好，请介绍一下自己"}'),
        ],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.decode().rstrip().endswith("[DONE]")
