"""Thoughts, tool calls that a model makes by itself, Anthropic's messages: when their worker is killed."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx2
import pytest

from testing import tool_model
from testing.stack import KEY, Stack
from testing.tool_model import transcripts
from tests.engine.failover import Answer, ask, both_ready, kill_worker_of, log_of, two_workers

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

#: Streams of each cell; by hand, for the matrix of the report: 100.
_STREAMS = int(os.environ.get("CY_FAILOVER_STREAMS", "1"))
#: How often a stream may have ended before the kill came; it is asked for once more, and struck earlier.
_TRIES = 12
_ROWS = {"type": "object", "properties": {"rows": {"type": "array", "items": {"type": "integer"}}}}
_CHAT_TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": _ROWS}},
    {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}},
]
_TOOLS = [
    {"name": "f", "input_schema": _ROWS},
    {"name": "g", "input_schema": {"type": "object", "properties": {}}},
]


def asked(question: str) -> dict[str, Any]:
    return {"model": "tools", "max_tokens": 700, "messages": [{"role": "user", "content": question}]}


#: Body, and after how many chunks the worker is killed.
CELLS: dict[str, tuple[dict[str, Any], int]] = {
    "in its thoughts": ({**asked(transcripts.ROWS), "tools": _CHAT_TOOLS}, 4),
    "in the arguments": ({**asked(transcripts.ROWS), "tools": _CHAT_TOOLS}, 60),
    "in the last numbers": ({**asked(transcripts.ROWS), "tools": _CHAT_TOOLS}, 200),
    "in long thoughts": (asked(transcripts.STORY), 100),
    "in a text after thoughts": (asked(transcripts.COUNT), 60),
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with two_workers(tmp_path_factory.mktemp("tools"), "tools", {**tool_model.ENTRY, "dtype": "float32"}) as stack:
        yield stack


def struck(stack: Stack, kill_at: int, run: Callable[[int], tuple[str, Any]]) -> Any:
    """Return what a stream says whose worker was killed before its end; ``run`` returns its id and that.

    ``kill_at``: after how many events. A model this fast may have ended by then: the next try strikes earlier.
    """
    for _ in range(_TRIES):
        both_ready(stack)
        answer_id, answer = run(kill_at)
        kill_at = max(1, kill_at * 2 // 3)
        [(last, _)] = stack.client.xrevrange(log_of(answer_id), count=1)
        if last.startswith(b"2-"):
            return answer
    raise AssertionError("every stream had ended before its worker was killed")


def _chat(stack: Stack, body: dict[str, Any], kill_at: int) -> tuple[str, Answer]:
    answer = ask(stack, body, kill_at)
    [(answer_id, _, _)] = answer.heads
    return answer_id, answer


@pytest.mark.parametrize("cell", list(CELLS))
def test_chat_goes_on(stack: Stack, cell: str) -> None:
    body, kill_at = CELLS[cell]
    both_ready(stack)
    expected = ask(stack, body)
    assert expected.thoughts
    for _ in range(_STREAMS):
        found = struck(stack, kill_at, lambda at: _chat(stack, body, at))
        assert found.same_words(expected), (found, expected)
        assert all(len(ids) == 1 for ids, _, _ in found.calls.values())


class Message:
    """What Anthropic's client makes of a stream."""

    def __init__(self, stack: Stack, body: dict[str, Any], kill_at: int | None = None) -> None:
        self.events: list[tuple[Any, ...]] = []
        base = stack.openai_base.removesuffix("/v1")
        with (
            httpx2.Client(trust_env=False, timeout=120) as http,
            anthropic.Anthropic(base_url=base, api_key=KEY, max_retries=0, http_client=http) as client,
            client.messages.stream(**body, extra_body={"temperature": 0}) as stream,
        ):
            for event in stream:
                self.events.append((event.type, getattr(event, "index", None)))
                if len(self.events) == kill_at:
                    kill_worker_of(stack, stream.current_message_snapshot.id)
            self.message = stream.get_final_message()

    def words(self) -> Any:
        """What it says, without what every run makes anew."""
        found = self.message.to_dict()
        blocks = [
            {name: value for name, value in block.items() if name not in ("id", "signature")}
            for block in found["content"]  # type: ignore[attr-defined]
        ]
        usage = (self.message.usage.input_tokens, self.message.usage.output_tokens)
        starts = [event for event in self.events if event[0] not in ("text", "thinking", "input_json")]
        return blocks, self.message.stop_reason, usage, [each for each in starts if each[0] != "content_block_delta"]


@pytest.mark.parametrize("kill_at", [3, 12, 150], ids=["thoughts", "text", "arguments"])
def test_messages_go_on(stack: Stack, kill_at: int) -> None:
    body = {**asked(transcripts.ROWS), "tools": _TOOLS}
    both_ready(stack)
    expected = Message(stack, body)
    assert [block.type for block in expected.message.content] == ["thinking", "text", "tool_use", "tool_use"]

    def run(at: int) -> tuple[str, Message]:
        message = Message(stack, body, at)
        return message.message.id, message

    for _ in range(_STREAMS):
        found = struck(stack, kill_at, run)
        assert found.words() == expected.words()
        ids = [block.id for block in found.message.content if block.type == "tool_use"]
        assert len(set(ids)) == 2


def _response(stack: Stack, body: dict[str, Any], kill_at: int | None = None) -> tuple[str, list[Any]]:
    events: list[Any] = []
    with stack.openai() as client:
        create: Any = client.responses.create
        for event in create(**body, stream=True):
            events.append(event)
            if len(events) == kill_at:
                kill_worker_of(stack, events[0].response.id.replace("resp_", "resp-"))
    return events[0].response.id.replace("resp_", "resp-"), events


def _said(events: list[Any]) -> Any:
    """What a stream of a response says, without what every run makes anew, and how it was cut into events."""
    ids: dict[str, int] = {}
    items, texts = [], {}
    for event in events:
        if event.type.endswith(".delta"):
            texts[event.output_index] = texts.get(event.output_index, "") + event.delta
            assert ids.setdefault(event.item_id, event.output_index) == event.output_index
        elif event.type.startswith("response.output_item"):
            items.append((event.type, event.output_index, event.item.type))
            assert ids.setdefault(event.item.id, event.output_index) == event.output_index
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert len({event.response.created_at for event in events if hasattr(event, "response")}) == 1
    last = events[-1]
    assert {item.id for item in last.response.output} == set(ids)
    return items, texts, last.type, last.response.status, last.response.usage.total_tokens


@pytest.mark.parametrize("kill_at", [1, 5, 20, 150], ids=["created", "thoughts", "text", "arguments"])
def test_responses_go_on(stack: Stack, kill_at: int) -> None:
    tools = [{"type": "function", **tool["function"]} for tool in _CHAT_TOOLS]
    body = {"model": "tools", "input": transcripts.ROWS, "tools": tools, "temperature": 0, "max_output_tokens": 700}
    both_ready(stack)
    _, expected = _response(stack, body)
    assert [item[2] for item in _said(expected)[0][::2]] == ["reasoning", "message", "function_call", "function_call"]
    for _ in range(_STREAMS):
        found = struck(stack, kill_at, lambda at: _response(stack, body, at))
        assert _said(found) == _said(expected)
    with stack.openai() as client:
        assert client.responses.retrieve(found[0].response.id).to_dict() == found[-1].response.to_dict()


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen", "killed"])
def test_a_whole_answer_never_fails_for_a_worker_s_loss(stack: Stack, how: signal.Signals) -> None:
    """It is asked once more; nobody had any of it."""
    both_ready(stack)
    body = {**asked(transcripts.STORY), "temperature": 0}
    with stack.openai() as client:
        create: Any = client.chat.completions.create
        expected = create(**body).choices[0].message
        for name in ("w1", "w2"):
            process = next(each for each in reversed(stack.processes) if each.name == name)
            found = _while_struck(lambda: create(**body), process.pid, how)
            assert (found.content, found.reasoning) == (expected.content, expected.reasoning)
            process.popen.kill()
            process.popen.wait(10)
            stack.spawn_worker(name)
            both_ready(stack)


def _while_struck(run: Callable[[], Any], pid: int, how: signal.Signals) -> Any:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(run())) for _ in range(4)]
    for thread in threads:
        thread.start()
    os.kill(pid, how)
    for thread in threads:
        thread.join(120)
    assert len(found) == len(threads), "an answer was lost"
    texts = {(each.choices[0].message.content, each.choices[0].finish_reason) for each in found}
    assert len(texts) == 1, texts
    return found[0].choices[0].message
