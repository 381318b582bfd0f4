"""Tools, thoughts and forms in chat on real vLLM, through OpenAI's client: streamed and whole answers say the same."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from testing import tool_model
from testing.stack import KEY, Stack
from testing.tool_model import transcripts
from tests.engine.conftest import serving

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

_A = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "f", "parameters": _A}},
    {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}},
]
NAMED = {"type": "function", "function": {"name": "g"}}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    # Where many run, deltas would be merged for long.
    with serving(tmp_path_factory.mktemp("chat"), {"tools": {**tool_model.ENTRY, "chunkMergeMs": 30}}) as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with stack.openai() as opened:
        yield opened


def asked(question: str = transcripts.CALLS, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "tools", "messages": messages, "temperature": 0, "max_tokens": 600, **more}


class Joined:
    """A stream put together, checked on the way for what clients rely on."""

    def __init__(self, raw: httpx.Client, body: dict[str, Any]) -> None:
        self.content = self.reasoning = ""
        self.calls: list[dict[str, Any]] = []
        self.finish_reasons: list[str] = []
        self.usages: list[dict[str, Any]] = []
        roles = 0
        answer = raw.post("/chat/completions", json={**body, "stream": True})
        assert answer.status_code == 200, answer.text
        events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event.startswith("data: ")]
        assert events.pop() == "[DONE]"
        for chunk in map(json.loads, events):
            self.usages += [chunk["usage"]] if chunk.get("usage") else []
            for choice in chunk["choices"]:
                delta = choice["delta"]
                roles += "role" in delta
                self.content += delta.get("content") or ""
                self.reasoning += delta.get("reasoning") or ""
                assert delta.get("reasoning") == delta.get("reasoning_content")
                assert delta.get("tool_calls") != [], delta
                for call in delta.get("tool_calls", []):
                    self._add(call)
                self.finish_reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
        assert roles == 1

    def _add(self, call: dict[str, Any]) -> None:
        function = call["function"]
        if call["index"] == len(self.calls):
            assert call["id"] and call["type"] == "function" and function["name"], call
            # Clients add to it.
            assert isinstance(function["arguments"], str), call
            self.calls.append({"id": call["id"], "name": function["name"], "arguments": ""})
        else:
            # Later ones: the index and more of the arguments.
            assert call["index"] == len(self.calls) - 1, call
            assert not call.get("id") and not function.get("name"), call
        self.calls[-1]["arguments"] += function.get("arguments") or ""


def compare(raw: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """Ask for an answer whole and streamed, and return its choice: both say the same."""
    answer = raw.post("/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    message = choice["message"]
    joined = Joined(raw, {**body, "stream_options": {"include_usage": True}})
    assert joined.content == (message["content"] or "")
    assert joined.reasoning == (message.get("reasoning") or "")
    assert message.get("reasoning") == message.get("reasoning_content")
    whole_calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls") or []
    ]
    assert [(call["name"], json.loads(call["arguments"])) for call in joined.calls] == whole_calls
    assert joined.finish_reasons == [choice["finish_reason"]]
    [usage] = joined.usages
    assert usage == {name: value for name, value in answer.json()["usage"].items() if value is not None}
    ids = [call["id"] for call in joined.calls]
    assert len(set(ids)) == len(ids)
    return dict(choice)


@pytest.mark.parametrize("choice", ["auto", "required", NAMED, "none"], ids=["auto", "required", "named", "none"])
def test_calls_whole_and_streamed(raw: httpx.Client, choice: Any) -> None:
    found = compare(raw, asked(tools=TOOLS, tool_choice=choice))
    calls = found["message"].get("tool_calls") or []
    assert found["message"]["reasoning"].strip() == "f comes first, then g."
    match choice:
        case "auto":
            assert [call["function"]["name"] for call in calls] == ["f", "g"]
            assert found["finish_reason"] == "tool_calls"
        case "required":
            assert calls and found["finish_reason"] == "tool_calls"
        case "none":
            assert not calls and found["finish_reason"] == "stop"
            assert "<tool_call>" in found["message"]["content"]
        case _:
            assert [call["function"]["name"] for call in calls] == ["g"]
            assert json.loads(calls[0]["function"]["arguments"]) == {}
            assert found["finish_reason"] == "stop"


def test_one_call_where_one_is_allowed(raw: httpx.Client) -> None:
    found = compare(raw, asked(tools=TOOLS, parallel_tool_calls=False))
    assert [call["function"]["name"] for call in found["message"]["tool_calls"]] == ["f"]


@pytest.mark.parametrize("tokens", [36, 70, 75])
def test_calls_are_the_same_beside_many_others(stack: Stack, tokens: int) -> None:
    """A busy engine merges what it has for a stream; calls must not be read out of several tokens at once."""
    body = asked(tools=TOOLS, max_tokens=tokens)

    def stream(_: int) -> list[Any]:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=stack.openai_base, headers=headers, trust_env=False, timeout=60) as http:
            return Joined(http, body).calls

    def functions(calls: list[Any]) -> list[Any]:
        return [(call["name"], call["arguments"]) for call in calls]

    alone = functions(stream(0))
    with ThreadPoolExecutor(32) as pool:
        assert [functions(calls) for calls in pool.map(stream, range(64))] == [alone] * 64


@pytest.mark.parametrize("tokens", range(26, 76, 3))
def test_an_answer_that_was_cut_says_so(raw: httpx.Client, tokens: int) -> None:
    """Wherever it is: whole and streamed, a call that was closed is one, and one that was begun has begun."""
    body = asked(tools=TOOLS, max_tokens=tokens)
    [whole] = raw.post("/chat/completions", json=body).json()["choices"]
    joined = Joined(raw, body)
    assert joined.finish_reasons == [whole["finish_reason"]] == ["length"]
    message = whole["message"]
    assert (message["content"] or "", message["reasoning"]) == (joined.content, joined.reasoning)
    assert "<tool_call>" not in joined.content
    functions = [call["function"] for call in message.get("tool_calls") or []]
    assert functions == [{"name": call["name"], "arguments": call["arguments"]} for call in joined.calls]


def test_thoughts_have_both_names_and_are_counted(raw: httpx.Client) -> None:
    found = compare(raw, asked(transcripts.COUNT))
    assert found["message"]["reasoning"].strip() == "I count."
    off = compare(raw, asked(transcripts.COUNT, chat_template_kwargs={"enable_thinking": False}))
    assert not off["message"].get("reasoning")
    assert off["message"]["content"].strip() == found["message"]["content"].strip()
    for body in (asked(transcripts.COUNT), asked(tools=TOOLS)):
        usage = raw.post("/chat/completions", json=body).json()["usage"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] > 0


def test_what_was_said_is_sent_back(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    body = asked(tools=TOOLS)
    first = create(**body).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in first.tool_calls]
    second = create(**{**body, "messages": [*body["messages"], first.to_dict(), *results]}).choices[0]
    assert (second.message.content.strip(), second.finish_reason) == (transcripts.DONE[1], "stop")
    for name in ("reasoning", "reasoning_content"):
        turns = [
            *asked("x")["messages"],
            {"role": "assistant", name: "t", "content": "y"},
            {"role": "user", "content": "z"},
        ]
        assert create(**{**body, "messages": turns}).choices


@pytest.mark.parametrize(
    "arguments", ['""', '"{\\"a\\": \\"x"', '"[1]"', '"5"', '"{\\"a\\":\\"é日\\"}"', "null"], ids=range(6)
)
def test_turns_with_odd_arguments_are_taken(raw: httpx.Client, arguments: str) -> None:
    call = {"id": "k", "type": "function", "function": {"name": "f", "arguments": json.loads(arguments)}}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "k", "content": ""},
    ]
    answer = raw.post("/chat/completions", json=asked(tools=TOOLS, max_tokens=5, messages=turns))
    assert answer.status_code == 200, answer.text
    turns[1] = {"role": "assistant", "content": "y", "tool_calls": []}
    turns[2] = {"role": "user", "content": "z"}
    assert raw.post("/chat/completions", json=asked(max_tokens=5, messages=turns)).status_code == 200


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}], ids=["none", "empty", "object"])
def test_functions_without_parameters(raw: httpx.Client, parameters: Any) -> None:
    function = {"name": "g"} if parameters is None else {"name": "g", "parameters": parameters}
    body = asked(transcripts.NO_ARGUMENTS, tools=[{"type": "function", "function": function}], tool_choice=NAMED)
    found = compare(raw, body)
    assert json.loads(found["message"]["tool_calls"][0]["function"]["arguments"]) == {}


_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    "more", [{}, {"chat_template_kwargs": {"enable_thinking": False}}, {"include_reasoning": False}], ids=range(3)
)
def test_a_form_begins_after_the_thoughts(raw: httpx.Client, more: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": _SCHEMA}}
    found = compare(raw, asked("x", response_format=form, **more))
    assert set(json.loads(found["message"]["content"])) == {"n"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_form_that_cannot_be_compiled(raw: httpx.Client, stream: bool) -> None:
    """Also where what is wrong looks like the field of an event."""
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "data: x"}}}
    answer = raw.post("/chat/completions", json=asked("x", response_format=form, stream=stream))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "response_format.json_schema.schema", answer.text


BAD_CHOICES: list[Any] = ["any", {"type": "function", "function": {"name": "zz"}}, {"type": "function", "name": "f"}]


@pytest.mark.parametrize("choice", BAD_CHOICES, ids=["any", "unknown", "flat"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_choice_that_is_none(raw: httpx.Client, choice: Any, stream: bool) -> None:
    answer = raw.post("/chat/completions", json=asked(tools=TOOLS, tool_choice=choice, stream=stream))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("tool_choice"), answer.text


def test_choices_without_tools(raw: httpx.Client) -> None:
    for choice, status in (("none", 200), (None, 200), ("required", 400), (NAMED, 400)):
        answer = raw.post("/chat/completions", json=asked("x", max_tokens=5, tool_choice=choice))
        assert answer.status_code == status, (choice, answer.text)
        if status == 400:
            assert answer.json()["error"]["param"] == "tool_choice"


@pytest.mark.parametrize(
    "options", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}], ids=range(3)
)
def test_usage_comes_only_where_it_is_asked_for(raw: httpx.Client, options: dict[str, Any]) -> None:
    body = {**asked("x", max_tokens=4, n=2, temperature=1.0, stream=True), **options}
    answer = raw.post("/chat/completions", json=body)
    chunks = [json.loads(event[6:]) for event in answer.text.split("\n\n") if event.startswith("data: {")]
    assert all(chunk["choices"] and not chunk.get("usage") for chunk in chunks)
    roles = [choice["index"] for chunk in chunks for choice in chunk["choices"] if "role" in choice["delta"]]
    assert sorted(roles) == [0, 1]
    body["stream_options"] = {"include_usage": True}
    answer = raw.post("/chat/completions", json=body)
    chunks = [json.loads(event[6:]) for event in answer.text.split("\n\n") if event.startswith("data: {")]
    assert [bool(chunk["choices"]) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[-1]["usage"]["completion_tokens"] == 8


def test_the_terminal_entry_tells_what_was_used(stack: Stack, raw: httpx.Client) -> None:
    for body in (asked(), asked(n=2, temperature=1.0, max_tokens=10), asked(stream=True, max_tokens=10)):
        answer = raw.post("/chat/completions", json=body)
        identity = answer.text.partition("chatcmpl-")[2].partition('"')[0]
        [(_, last)] = stack.client.xrevrange(f"cy:log:gen-{identity}", count=1)
        usage = json.loads(last[b"d"])["usage"]
        if body.get("stream"):
            assert usage["completion_tokens"] == 10
        else:
            counts = answer.json()["usage"]
            assert usage == {name: counts[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


def test_texts_become_tokens_and_back(stack: Stack, raw: httpx.Client) -> None:
    root = stack.openai_base.removesuffix("/v1")
    for text in ("I count.", "日本 é 😀", ""):
        made = raw.post(f"{root}/tokenize", json={"model": "tools", "prompt": text})
        assert made.status_code == 200, made.text
        found = made.json()
        assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 4096)
        back = raw.post(f"{root}/detokenize", json={"model": "tools", "tokens": found["tokens"]})
        assert back.json() == {"prompt": text}
    body = asked(tools=TOOLS)
    counted = raw.post(f"{root}/tokenize", json={name: body[name] for name in ("model", "messages", "tools")})
    assert counted.json()["count"] == raw.post("/chat/completions", json=body).json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("tokenize", {}),
        ("tokenize", {"prompt": "x", "messages": []}),
        ("tokenize", {"prompt": 5}),
        ("tokenize", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        ("detokenize", {}),
        ("detokenize", {"tokens": "x"}),
        ("detokenize", {"tokens": [-1]}),
        ("detokenize", {"tokens": [2**40]}),
    ],
    ids=range(8),
)
def test_what_cannot_be_tokens(stack: Stack, raw: httpx.Client, path: str, body: dict[str, Any]) -> None:
    root = stack.openai_base.removesuffix("/v1")
    answer = raw.post(f"{root}/{path}", json={"model": "tools", **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
