"""Anthropic's API on real vLLM, through Anthropic's own client and by hand, on the model that calls tools."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import anthropic
import httpx
import httpx2
import pytest

from settings import ROOT
from store.token_log.entries import Kind
from testing import tool_model
from testing.stack import KEY, Stack
from testing.tool_model import transcripts
from tests.conftest import require

pytestmark = [pytest.mark.timeout(300)]

TOOLS: list[dict[str, Any]] = [
    {"name": "f", "input_schema": {"type": "object", "properties": {"a": {"type": "string"}}}},
    {"name": "g", "input_schema": {"type": "object", "properties": {}}},
]
#: Its SDK has no temperature any more.
GREEDY = {"extra_body": {"temperature": 0}}
DEMO = {"modelPath": str(ROOT / "models" / "demo"), "enforceEager": True, "kvCacheMemoryBytes": 2**26}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    models = {"default": "tools", "models": {"tools": tool_model.ENTRY, "demo": DEMO}}
    stack = Stack(tmp_path_factory.mktemp("anthropic"), models)
    try:
        stack.start_web()
        stack.start_worker("w1", ["--models", "tools,demo"], seconds=180)
        yield stack
    finally:
        stack.close()


@pytest.fixture
def client(stack: Stack) -> Iterator[anthropic.Anthropic]:
    with (
        httpx2.Client(trust_env=False, timeout=60) as http,
        anthropic.Anthropic(
            base_url=stack.openai_base.removesuffix("/v1"), api_key=KEY, max_retries=0, http_client=http
        ) as opened,
    ):
        yield opened


@pytest.fixture
def raw(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.openai_base, headers={"x-api-key": KEY}, trust_env=False, timeout=60) as opened:
        yield opened


def asked(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "tools", "max_tokens": 600, "messages": messages, **GREEDY, **more}


def blocks(message: anthropic.types.Message) -> list[Any]:
    """What a message holds, without what every run makes anew."""
    found: list[Any] = []
    for block in message.content:
        if block.type == "thinking":
            found.append(("thinking", block.thinking.strip()))
        elif block.type == "text":
            found.append(("text", block.text.strip()))
        elif block.type == "tool_use":
            found.append((block.name, block.input))
    return found


THOUGHTS, _ = transcripts.WITH_TOOLS[transcripts.CALLS]
CALLED = [("thinking", THOUGHTS), ("text", "I will call both."), ("f", {"a": "x"}), ("g", {})]


def test_thoughts_text_and_two_calls_whole_and_streamed(client: anthropic.Anthropic) -> None:
    body = asked(transcripts.CALLS, tools=TOOLS)
    whole = client.messages.create(**body)
    assert blocks(whole) == CALLED
    assert (whole.stop_reason, whole.stop_sequence, whole.model) == ("tool_use", None, "tools")
    with client.messages.stream(**body) as stream:
        kinds = [event.type for event in stream]
        joined = stream.get_final_message()
    assert blocks(joined) == blocks(whole)
    assert (joined.stop_reason, joined.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert joined.usage.input_tokens == whole.usage.input_tokens
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    ids = [block.id for block in whole.content if block.type == "tool_use"]
    assert len(set(ids)) == 2 and all(ids)


def test_without_tools_nothing_is_a_call(client: anthropic.Anthropic) -> None:
    """Whatever it looks like; whole and streamed."""
    whole = client.messages.create(**asked(transcripts.CALLS))
    with client.messages.stream(**asked(transcripts.CALLS)) as stream:
        joined = stream.get_final_message()
    assert blocks(joined) == blocks(whole) and joined.stop_reason == whole.stop_reason == "end_turn"
    assert [kind for kind, _ in blocks(whole)] == ["thinking", "text"]


def test_turns_of_one_side_in_a_row_are_one(client: anthropic.Anthropic) -> None:
    several = [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
    one = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    counts = [client.messages.count_tokens(model="tools", messages=turns) for turns in (several, one)]  # type: ignore[arg-type]
    assert counts[0].input_tokens == counts[1].input_tokens
    answers = [
        client.messages.create(**{**asked("x"), "messages": turns, "max_tokens": 20}) for turns in (several, one)
    ]
    assert blocks(answers[0]) == blocks(answers[1])


def test_what_a_tool_is_called_with_is_an_object(client: anthropic.Anthropic) -> None:
    for schema in ({"type": "string"}, {"type": ["object", "null"]}, {"anyOf": [{"type": "null"}, {"enum": [1]}]}):
        tools = [{"name": "f", "input_schema": schema}]
        with pytest.raises(anthropic.BadRequestError, match=r"tools\.0\.input_schema\.type"):
            client.messages.create(**asked(transcripts.CALLS, tools=tools, tool_choice={"type": "any"}))


def test_events_come_in_their_order(raw: httpx.Client) -> None:
    body = {**asked(transcripts.CALLS, tools=TOOLS), "stream": True, "temperature": 0}
    answer = raw.post("/messages?beta=true", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["request-id"].startswith("req_")
    events = [event.split("\ndata: ") for event in answer.text.split("\n\n") if event.startswith("event: ")]
    found = [json.loads(data) for _, data in events]
    assert [name.removeprefix("event: ") for name, _ in events] == [each["type"] for each in found]
    assert "[DONE]" not in answer.text
    start = found[0]["message"]
    assert (start["type"], start["role"], start["content"], start["stop_reason"]) == ("message", "assistant", [], None)
    assert start["usage"]["input_tokens"] > 0
    opened: int | None = None
    seen = []
    for event in found[1:-2]:
        if event["type"] == "content_block_start":
            assert opened is None and event["index"] == len(seen)
            opened = event["index"]
            seen.append(event["content_block"]["type"])
        elif event["type"] == "content_block_stop":
            assert event["index"] == opened
            opened = None
        else:
            assert (event["type"], event["index"]) == ("content_block_delta", opened)
            kinds = {"thinking": ("thinking_delta", "signature_delta"), "text": ("text_delta",)}
            assert event["delta"]["type"] in kinds.get(seen[-1], ("input_json_delta",))
    assert opened is None
    assert seen == ["thinking", "text", "tool_use", "tool_use"]
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-1] == {"type": "message_stop"}


def test_the_tools_answers_are_sent_back(client: anthropic.Anthropic) -> None:
    body = asked(transcripts.CALLS, tools=TOOLS)
    first = client.messages.create(**body)
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
        for block in first.content
        if block.type == "tool_use"
    ]
    turns = [*body["messages"], {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = client.messages.create(**{**body, "messages": turns})
    assert blocks(second) == [("thinking", transcripts.DONE[0]), ("text", transcripts.DONE[1])]
    assert second.stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "any"}, None),
        ({"type": "tool", "name": "g"}, ["g"]),
        ({"type": "none"}, []),
        ({"type": "any", "disable_parallel_tool_use": True}, None),
    ],
    ids=["any", "tool", "none", "one"],
)
def test_what_must_be_called(client: anthropic.Anthropic, choice: Any, names: list[str] | None) -> None:
    body = asked(transcripts.CALLS, tools=TOOLS, tool_choice=choice)
    whole = client.messages.create(**body)
    with client.messages.stream(**body) as stream:
        joined = stream.get_final_message()
    called = [block.name for block in whole.content if block.type == "tool_use"]
    assert blocks(joined) == blocks(whole)
    if names is None:
        assert called and (len(called) == 1 or "disable_parallel_tool_use" not in choice)
    else:
        assert called == names
    assert whole.stop_reason == joined.stop_reason == ("tool_use" if called else "end_turn")


def test_the_end_is_told_as_what_it_is(client: anthropic.Anthropic) -> None:
    cut = client.messages.create(**asked(transcripts.COUNT, max_tokens=12))
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 12)
    stopped = client.messages.create(**asked(transcripts.COUNT, stop_sequences=["12"]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "12")
    assert blocks(stopped)[-1] == ("text", "\n".join(map(str, range(1, 12))))


@pytest.mark.parametrize("tokens", [58, 64])
def test_a_call_that_was_closed_before_the_cut_is_one(client: anthropic.Anthropic, tokens: int) -> None:
    body = asked(transcripts.CALLS, tools=TOOLS, max_tokens=tokens)
    whole = client.messages.create(**body)
    with client.messages.stream(**body) as stream:
        joined = stream.get_final_message()
    assert CALLED[2] in blocks(whole)
    assert blocks(whole) == blocks(joined)
    assert whole.stop_reason == joined.stop_reason == "max_tokens"


def test_a_begun_answer_is_gone_on_with(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**{**asked("What is the capital of France?"), "model": "demo"})
    [(_, text)] = blocks(whole)
    # Cut before a space: words begin with it.
    begun = text[: text.index(" ", len(text) // 2)]
    turns = [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": begun}]
    on = client.messages.create(model="demo", max_tokens=100, messages=turns, **GREEDY)  # type: ignore[arg-type]
    assert begun + on.content[0].text == text  # type: ignore[union-attr]


def test_a_begun_answer_of_a_model_that_thinks_goes_on_as_text(raw: httpx.Client) -> None:
    turns = [{"role": "user", "content": transcripts.COUNT}, {"role": "assistant", "content": "1\n2\n3"}]
    for stream in (False, True):
        body = {"model": "tools", "max_tokens": 8, "temperature": 0, "messages": turns, "stream": stream}
        answer = raw.post("/messages", json=body)
        assert answer.status_code == 200 and '"type":"text"' in answer.text, answer.text
        assert "thinking" not in answer.text


def test_tokens_are_counted_as_the_message_counts_them(client: anthropic.Anthropic, raw: httpx.Client) -> None:
    body = asked(transcripts.CALLS, tools=TOOLS, system=[{"type": "text", "text": "Be brief."}])
    counted = {name: body[name] for name in ("model", "messages", "tools", "system")}
    expected = client.messages.create(**body).usage.input_tokens
    assert client.messages.count_tokens(**counted).input_tokens == expected
    assert raw.post("/messages/count_tokens?beta=true", json=counted).json() == {"input_tokens": expected}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", ""),
        ([], ""),
        ([{"type": "text", "text": ""}], ""),
        ([{"type": "text", "text": "a"}, {"type": "image", "source": {"type": "base64", "data": "AA=="}}], None),
        ([{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a document"}}], None),
        ([{"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "r"}]}], None),
    ],
    ids=["text", "nothing", "empty", "image", "document", "search"],
)
def test_what_a_tool_s_answer_may_hold(raw: httpx.Client, content: Any, text: str | None) -> None:
    def counted(content: Any) -> int:
        use = {"type": "tool_use", "id": "k", "name": "f", "input": {"a": "1"}}
        result = {"type": "tool_result", "tool_use_id": "k", "is_error": True, "content": content}
        turns = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result, {"type": "text", "text": "go on"}]},
        ]
        answer = raw.post("/messages/count_tokens", json={"model": "tools", "tools": TOOLS, "messages": turns})
        assert answer.status_code == 200, answer.text
        tokens: int = answer.json()["input_tokens"]
        return tokens

    nothing = counted(None)
    assert counted(content) == nothing if text == "" else counted(content) > nothing


REFUSED = {
    "no max_tokens": ({"model": "tools", "messages": [{"role": "user", "content": "x"}]}, 400, "max_tokens"),
    "nothing asked": ({"model": "tools", "max_tokens": 1, "messages": []}, 400, "messages"),
    "unknown model": ({"model": "nope", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}, 404, "nope"),
    "role": ({"model": "tools", "max_tokens": 1, "messages": [{"role": "robot", "content": "x"}]}, 400, "role"),
    "block": (asked("", messages=[{"role": "user", "content": [{"type": "no_such"}]}]), 400, "no_such"),
    "image": (asked("", messages=[{"role": "user", "content": [{"type": "image", "source": {}}]}]), 400, "image"),
    "budget": (asked("x", thinking={"type": "enabled", "budget_tokens": 1024}), 400, "budget_tokens"),
    "unknown tool": (asked("x", tools=TOOLS, tool_choice={"type": "tool", "name": "zz"}), 400, "f, g"),
    "no tools": (asked("x", tool_choice={"type": "any"}), 400, "tools"),
    "no parser": ({**asked("x", tools=TOOLS), "model": "demo"}, 400, "tool_call_parser"),
    "begun": (
        asked(
            "x",
            messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            thinking={"type": "enabled", "budget_tokens": 1024},
            max_tokens=2000,
        ),
        400,
        "thinking",
    ),
    "reference": (asked("", messages=[{"role": "user", "content": [{"type": "tool_reference"}]}]), 400, "tool_ref"),
    "no text": (asked("", messages=[{"role": "user", "content": [{"type": "text"}]}]), 400, "text"),
    "system": (asked("x", system=[{"type": "image", "source": {}}]), 400, "system.0"),
    "servers": (asked("x", mcp_servers=[{"type": "url", "url": "http://x", "name": "y"}]), 400, "mcp_servers"),
    "result": (
        asked("", messages=[{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "k", "content": 5}]}]),
        400,
        "messages.0.content.0.content",
    ),
    "too long": (asked("x " * 9000), 400, "context"),
    "schema": (
        asked("x", tools=[{"name": "f", "input_schema": {"type": "no-such"}}], tool_choice={"type": "any"}),
        400,
        "tools",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_refusals_have_anthropic_s_shape(raw: httpx.Client, kind: str, stream: bool) -> None:
    body, status, word = REFUSED[kind]
    answer = raw.post("/messages", json={**body, "stream": stream})
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert set(found) == {"type", "error", "request_id"}
    assert found["type"] == "error"
    assert found["error"]["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert word in found["error"]["message"], found
    assert found["request_id"] == answer.headers["request-id"]


def test_other_errors_have_it_too(raw: httpx.Client, stack: Stack) -> None:
    for path, body, key, status, kind in (
        ("/messages", b"{", KEY, 400, "invalid_request_error"),
        ("/messages", b"{}", "wrong", 401, "authentication_error"),
        ("/messages/none", b"{}", KEY, 404, "not_found_error"),
        ("/messages", b'{"model": "' + b"x" * 9_000_000 + b'"}', KEY, 413, "request_too_large"),
    ):
        answer = raw.post(path, content=body, headers={"x-api-key": key, "content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind), answer.text[:500]
    assert raw.get("/messages").status_code == 405
    with stack.openai() as client:
        assert client.models.with_raw_response.list().headers["x-request-id"].startswith("req_")


def test_either_key_header_opens_every_path(stack: Stack) -> None:
    body = asked("x", max_tokens=4)
    for headers in ({"x-api-key": KEY}, {"Authorization": f"Bearer {KEY}"}):
        with httpx.Client(base_url=stack.openai_base, headers=headers, trust_env=False, timeout=60) as http:
            assert http.post("/messages", json=body).status_code == 200
            assert http.get("/models").status_code == 200


def test_the_terminal_entry_tells_what_was_used(stack: Stack, raw: httpx.Client) -> None:
    for stream in (False, True):
        answer = raw.post("/messages", json={**asked(transcripts.COUNT, max_tokens=40), "stream": stream})
        text = answer.text if stream else json.dumps(answer.json())
        identity = text.partition("chatcmpl-")[2].partition('"')[0]
        [(_, last)] = stack.client.xrevrange(f"cy:log:gen-{identity}", count=1)
        assert last[b"k"].decode() == Kind.END
        usage = json.loads(last[b"d"])["usage"]
        assert usage["completion_tokens"] == 40
        assert usage["total_tokens"] == usage["prompt_tokens"] + 40
