"""OpenAI's Responses API on real vLLM, through OpenAI's client, on the model that thinks, remembers and calls tools."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseItemList

from store.principal import Scope
from store.sql import db
from store.sql.api_keys import ApiKeyStore
from testing import tool_model
from testing.stack import KEY, Stack
from testing.tool_model import transcripts
from tests.conftest import require
from tests.engine.response_words import asked, words

pytestmark = [pytest.mark.timeout(300)]

_FUNCTION = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "f", "parameters": _FUNCTION},
    {"type": "function", "name": "g", "parameters": {"type": "object", "properties": {}}},
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    models = {"default": "tools", "models": {"tools": tool_model.ENTRY}}
    stack = Stack(tmp_path_factory.mktemp("responses"), models, env={"CY_LLM_MAX_RESPONSES": "20"})
    try:
        stack.start_web()
        stack.start_worker("w1", ["--models", "tools"], seconds=180)
        yield stack
    finally:
        stack.close()


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with stack.openai() as opened:
        yield opened


CALLED = [
    ("reasoning", "f comes first, then g.", None),
    ("message", "I will call both.", "completed"),
    ("f", {"a": "x"}, "completed"),
    ("g", {}, "completed"),
]


def test_thoughts_text_and_two_calls_whole_and_streamed(client: openai.OpenAI) -> None:
    body = asked(transcripts.CALLS, tools=TOOLS)
    whole = client.responses.create(**body)
    assert words(whole) == CALLED
    assert whole.status == "completed"
    assert whole.usage is not None and whole.usage.output_tokens_details.reasoning_tokens > 0
    events = list(client.responses.create(**body, stream=True))
    joined: Response = events[-1].response
    assert words(joined) == CALLED
    assert joined.usage is not None and joined.usage.total_tokens == whole.usage.total_tokens
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    # Each item is opened once and closed once, with what its deltas say.
    deltas: dict[int, str] = {}
    done = [event.item for event in events if event.type == "response.output_item.done"]
    for event in events:
        if event.type.endswith(".delta"):
            deltas[event.output_index] = deltas.get(event.output_index, "") + event.delta
    assert [item.id for item in done] == [item.id for item in joined.output]
    assert deltas[1] == done[1].content[0].text
    assert json.loads(deltas[2]) == {"a": "x"} and deltas[3] == "{}"
    call_ids = [item.call_id for item in done[2:]]
    assert len(set(call_ids)) == 2


def test_the_answers_of_tools_go_with_what_came_before(client: openai.OpenAI) -> None:
    first = client.responses.create(**asked(transcripts.CALLS, tools=TOOLS, instructions="Be brief."))
    calls = [item.call_id for item in first.output if item.type == "function_call"]
    outputs = [{"type": "function_call_output", "call_id": call, "output": "sunny"} for call in calls]
    second = client.responses.create(**asked(outputs, tools=TOOLS, previous_response_id=first.id))
    assert words(second) == [("reasoning", transcripts.DONE[0], None), ("message", transcripts.DONE[1], "completed")]
    assert (second.previous_response_id, second.instructions) == (first.id, None)
    # The same by hand, with what the first answer said sent back as it was.
    given = [{"role": "user", "content": transcripts.CALLS}, *[item.to_dict() for item in first.output], *outputs]
    assert words(client.responses.create(**asked(given, tools=TOOLS))) == words(second)


def test_a_chain_of_three(client: openai.OpenAI) -> None:
    first = client.responses.create(**asked("My name is Kim."))
    second = client.responses.create(**asked("x", previous_response_id=first.id))
    third = client.responses.create(**asked("What is my name?", previous_response_id=second.id))
    assert words(third)[-1] == ("message", "Your name is Kim.", "completed")
    found = client.responses.retrieve(third.id)
    assert found.to_dict() == third.to_dict()
    items = client.responses.input_items.list(third.id, limit=2, order="asc")
    shown = list(items)
    assert [item.type for item in shown] == ["message", "reasoning", "message"] * 2 + ["message"]
    assert len({item.id for item in shown}) == 7
    # An earlier one may go; what was made of it stays.
    client.responses.delete(first.id)
    again = client.responses.create(**asked("What is my name?", previous_response_id=second.id))
    assert words(again)[-1] == words(third)[-1]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_what_is_not_there_cannot_be_gone_on_from(client: openai.OpenAI) -> None:
    unkept = client.responses.create(**asked("x", store=False)).id
    gone = client.responses.create(**asked("x")).id
    client.responses.delete(gone)
    for missing in ("resp_none", unkept, gone):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(**asked("y", previous_response_id=missing))
        assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")
        for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                call(missing)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_that_was_cut_says_so(client: openai.OpenAI, stream: bool) -> None:
    for question, kind in ((transcripts.STORY, "reasoning"), (transcripts.COUNT, "message")):
        found: Any = client.responses.create(**asked(question, max_output_tokens=30), stream=stream)
        if stream:
            *_, closed, last = found
            assert (closed.type, closed.item.status) == ("response.output_item.done", "incomplete")
            assert last.type == "response.incomplete"
            found = last.response
        assert found.status == "incomplete"
        assert found.incomplete_details.reason == "max_output_tokens"
        assert (found.output[-1].type, found.output[-1].status) == (kind, "incomplete")
        assert client.responses.retrieve(found.id).to_dict() == found.to_dict()


@pytest.mark.parametrize("tokens", [40, 58, 70])
def test_calls_of_an_answer_that_was_cut(client: openai.OpenAI, tokens: int) -> None:
    body = asked(transcripts.CALLS, tools=TOOLS, max_output_tokens=tokens)
    whole: Any = client.responses.create(**body)
    *_, last = client.responses.create(**body, stream=True)
    for found in (whole, last.response):
        assert found.status == "incomplete"
        calls = [(item.name, item.arguments, item.status) for item in found.output if item.type == "function_call"]
        if tokens > 40:
            assert calls[0] == ("f", '{"a": "x"}', "completed")
        assert all(status == ("completed" if _is_json(said) else "incomplete") for _, said, status in calls)
    kinds = [[item.type for item in found.output] for found in (whole, last.response)]
    assert kinds[0] == kinds[1]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_what_agents_send(client: openai.OpenAI) -> None:
    """Codex: items without ids, tools of unknown kinds, members that change nothing here."""
    found = client.responses.create(
        model="tools",
        store=False,
        parallel_tool_calls=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "low"},
        instructions="You are an agent",
        max_output_tokens=64,
        input=[
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},  # type: ignore[list-item]
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]},  # type: ignore[list-item]
            {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "k1"},
            {"type": "function_call_output", "call_id": "k1", "output": [{"type": "input_text", "text": "done"}]},
        ],
        tools=[
            {"type": "function", "name": "f", "strict": False, "parameters": {"type": "object", "properties": {}}},
            {"type": "custom", "name": "patch", "description": "free text"},
            {"type": "web_search"},
            {"type": "local_shell"},
            {"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "h", "parameters": {}}]},  # type: ignore[list-item]
        ],
    )
    assert found.output


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no input": ({"input": None}, "input"),
    "nothing": ({"input": []}, "input"),
    "a number": ({"input": 5}, "input"),
    "an item": ({"input": ["x"]}, "input.0"),
    "image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x/y.png"}]}]},
        "input[0].content[0].type",
    ),
    "no tokens": ({"max_output_tokens": 0}, "max_output_tokens"),
    "background": ({"background": True, "store": False}, "background"),
    "conversation": ({"conversation": "conv_1"}, "conversation"),
    "choices": ({"n": 2}, "n"),
    "of some": (
        {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": TOOLS}},
        "tool_choice",
    ),
    "a tool": ({"tools": [{"name": "f"}]}, "tools[0].type"),
    "a reference": ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    "no role": ({"input": [{"content": "x"}]}, "input[0].role"),
    "no such tool": ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "zz"}}, "tool_choice"),
    "no tools": ({"tool_choice": "required"}, "tool_choice"),
    "a word": ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    "schema": (
        {"text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "no-such"}}}},
        "text.format.schema",
    ),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_is_wrong_is_named(stack: Stack, kind: str, stream: bool) -> None:
    body, param = BAD[kind]
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, timeout=60) as http:
        answer = http.post(f"{stack.openai_base}/responses", json={**asked("x"), "stream": stream, **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text


def test_what_turns_out_wrong_behind_the_thoughts_ends_the_response(stack: Stack) -> None:
    """No text has this form, and that is seen with the first token of it."""
    form = {"type": "json_schema", "name": "s", "schema": {"$ref": "#"}}
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, timeout=60) as http:
        answer = http.post(
            f"{stack.openai_base}/responses", json={**asked("x"), "stream": True, "text": {"format": form}}
        )
        assert "event: response.failed" in answer.text, answer.text
        failed = json.loads(answer.text.rpartition("\ndata: ")[2])["response"]
        assert (failed["status"], failed["error"]["code"]) == ("failed", "invalid_prompt")
        assert failed["error"]["message"].startswith("The form that is asked for in 'text.format.schema'"), failed
        assert http.get(f"{stack.openai_base}/responses/{failed['id']}").json() == failed
        assert "event: response.reasoning_text.delta" in answer.text
    [log] = [process.log for process in stack.processes if process.name == "w1"]
    assert "does not end within" not in log.read_text(), "its end was held back"


def _tokens(stack: Stack, given: list[Any]) -> int:
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, timeout=60) as http:
        answer = http.post(f"{stack.openai_base}/responses/input_tokens", json=asked(given, tools=TOOLS))
    assert answer.status_code == 200, answer.text
    found: int = answer.json()["input_tokens"]
    return found


def test_everything_that_was_said_is_read(stack: Stack) -> None:
    """Parts are joined, refusals and empty answers are turns, and what cannot be read in a tool's answer is told."""

    def said(*content: dict[str, Any]) -> list[Any]:
        first, last = ({"role": "user", "content": text} for text in "xy")
        return [first, {"type": "message", "role": "assistant", "id": None, "content": list(content)}, last]

    def text(of: str) -> dict[str, Any]:
        return {"type": "output_text", "text": of}

    whole = _tokens(stack, said(text("one two three four")))
    assert _tokens(stack, said(text("one two"), text(" three four"))) == whole
    assert _tokens(stack, said({"type": "refusal", "refusal": "one two three four"})) == whole
    assert _tokens(stack, said()) < whole
    call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "k", "status": "completed"}
    picture = {"type": "input_image", "image_url": "http://x/y.png"}
    outputs = {
        name: _tokens(stack, [*said()[:1], call, {"type": "function_call_output", "call_id": "k", "output": output}])
        for name, output in (("empty", ""), ("picture", [picture]), ("text", [{"type": "input_text", "text": ""}]))
    }
    assert outputs["picture"] > outputs["empty"] == outputs["text"]
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}
    assert _tokens(stack, [search, *said()]) == _tokens(stack, said())


def test_a_begun_answer_is_gone_on_with_as_text(client: openai.OpenAI) -> None:
    begun = {"type": "message", "role": "assistant", "status": "incomplete"}
    begun["content"] = [{"type": "output_text", "text": "1\n2\n3"}]  # type: ignore[assignment]
    found = client.responses.create(
        **asked([{"role": "user", "content": transcripts.COUNT}, begun], max_output_tokens=9)
    )
    assert [item.type for item in found.output] == ["message"]


def test_a_refused_request_is_no_response(stack: Stack, client: openai.OpenAI) -> None:
    kept = set(stack.client.keys("cy:resp:*"))
    for body in ({"text": {"format": {"type": "zz"}}}, {"input": "x " * 9000}):
        with pytest.raises(openai.BadRequestError):
            client.responses.create(**asked("x", **body) if "input" not in body else {**asked("x"), **body})
    assert set(stack.client.keys("cy:resp:*")) == kept


def test_calls_at_once_with_one_idempotency_key_are_one_response(stack: Stack, client: openai.OpenAI) -> None:
    kept = set(stack.client.keys("cy:resp:*"))
    body = asked("x", extra_headers={"Idempotency-Key": "once"}, max_output_tokens=3)
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: client.responses.create(**body), range(6)))
    assert len({response.id for response in made}) == 1
    assert len(set(stack.client.keys("cy:resp:*")) - kept) == 1


def test_a_response_can_be_gone_on_from_at_its_last_event(client: openai.OpenAI) -> None:
    for _ in range(10):
        for event in client.responses.create(**asked("My name is Lee."), stream=True):
            if event.type == "response.completed":
                found = client.responses.create(**asked("What is my name?", previous_response_id=event.response.id))
                assert words(found)[-1] == ("message", "Your name is Lee.", "completed")


def test_the_events_of_a_response_can_be_read_again(client: openai.OpenAI, stack: Stack) -> None:
    events = list(client.responses.create(**asked(transcripts.COUNT), stream=True))
    answer_id = events[0].response.id
    again = list(client.responses.retrieve(answer_id, stream=True, starting_after=10))
    assert [event.to_dict() for event in again] == [event.to_dict() for event in events[11:]]
    client.responses.delete(answer_id)
    *_, last = client.responses.create(**asked("x", store=False), stream=True)
    unkept = last.response.id
    for gone in (answer_id, unkept):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone, stream=True)


def test_pages_of_items_without_ids(client: openai.OpenAI) -> None:
    items: list[Any] = [
        {"role": "user", "content": text, "id": given} for text, given in (("x", None), ("y", "a"), ("z", "a"))
    ]
    made = client.responses.create(**asked(items, max_output_tokens=1))
    found = list(client.responses.input_items.list(made.id, limit=1))
    assert len({item.id for item in found}) == len(found) == 3


def test_the_shapes_are_openai_s(stack: Stack) -> None:
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, timeout=60) as http:
        made = http.post(f"{stack.openai_base}/responses", json=asked(transcripts.CALLS, tools=TOOLS)).json()
        Response.model_validate(made)
        assert (made["error"], made["metadata"], made["text"]) == (None, {}, {"format": {"type": "text"}})
        items = http.get(f"{stack.openai_base}/responses/{made['id']}/input_items").json()
        ResponseItemList.model_validate(items)
        counted = http.post(f"{stack.openai_base}/responses/input_tokens", json=asked(transcripts.CALLS, tools=TOOLS))
        assert counted.json() == {"object": "response.input_tokens", "input_tokens": made["usage"]["input_tokens"]}
        refused = http.post(f"{stack.openai_base}/responses/{made['id']}/cancel")
        assert refused.status_code == 400


def test_the_oldest_make_room(client: openai.OpenAI) -> None:
    first = client.responses.create(**asked("x", max_output_tokens=1)).id
    for _ in range(20):
        last = client.responses.create(**asked("x", max_output_tokens=1)).id
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first)
    assert client.responses.retrieve(last).id == last


def test_another_tenant_s_do_not_exist(stack: Stack, client: openai.OpenAI) -> None:
    mine = client.responses.create(**asked("x")).id
    engine = db.connect(stack.database_url)
    other = ApiKeyStore(db.sessions(engine)).add("other", [Scope.INFERENCE], "other")
    engine.dispose()
    with stack.openai(other) as stranger:
        for call in (stranger.responses.retrieve, stranger.responses.delete, stranger.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                call(mine)
        with pytest.raises(openai.BadRequestError):
            stranger.responses.create(**asked("y", previous_response_id=mine))


def test_the_measures_are_those_of_the_text(client: openai.OpenAI) -> None:
    """Not of the thoughts before it; whole and streamed."""
    wanted: Any = {**asked(transcripts.CALLS), "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = client.responses.create(**wanted)
    with client.responses.create(**wanted, stream=True) as stream:
        last = list(stream)[-1]
    for response in (whole, last.response):  # type: ignore[union-attr]
        [text] = [item.content[0] for item in response.output if item.type == "message"]
        spelled = b"".join(bytes(each.bytes) for each in text.logprobs or [])
        assert spelled == text.text.encode() and all(len(each.top_logprobs) == 2 for each in text.logprobs)
