"""Streams of ``/v1`` whose worker is killed, on real vLLM, through OpenAI's own client: what arrives is what an
undisturbed run says, in one piece."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settings import ROOT
from store.token_log import log as token_log
from testing.stack import Stack
from testing.waiting import until
from tests.engine.failover import ask, both_ready, kill_worker_of, log_of, two_workers

_log = logging.getLogger(__name__)
pytestmark = [pytest.mark.timeout(600)]

_CONTEXT = 1024
_DEMO = {
    "modelPath": str(ROOT / "models" / "demo"),
    "enforceEager": True,
    "kvCacheMemoryBytes": 2**27,
    "maxModelLen": _CONTEXT,
    # With 16 bits what goes on behind a seam may fall otherwise between two equals.
    "dtype": "float32",
}
#: Chunks that the client has got when the worker is killed.
_KILL_AT = 12

_ROWS = {
    "type": "object",
    "properties": {"rows": {"type": "array", "minItems": 90, "maxItems": 90, "items": {"enum": [0, 1, 22, 333]}}},
    "required": ["rows"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": _ROWS}}
_CHAT = {"messages": [{"role": "user", "content": "Tell a story"}], "max_tokens": 900}
_LONG = {"extra_body": {"ignore_eos": True}}
#: What is asked, by a word for it.
BODIES: dict[str, dict[str, Any]] = {
    "chat": {**_CHAT, **_LONG},
    "chat with logprobs": {**_CHAT, **_LONG, "max_tokens": 600, "logprobs": True, "top_logprobs": 2},
    "chat with penalties": {**_CHAT, **_LONG, "max_tokens": 300, "presence_penalty": 0.8, "frequency_penalty": 0.4},
    "chat with words that it must not say": {
        **_CHAT,
        "max_tokens": 300,
        "extra_body": {"ignore_eos": True, "bad_words": [" computer", " the"], "min_tokens": 200},
    },
    "chat with a stop string": {**_CHAT, **_LONG, "stop": ["no such text", "never said"]},
    "JSON schema": {
        **_CHAT,
        "response_format": {"type": "json_schema", "json_schema": {"name": "rows", "schema": _ROWS, "strict": True}},
    },
    "a forced tool call": {**_CHAT, "tools": [_TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    "a required tool call": {**_CHAT, "tools": [_TOOL], "tool_choice": "required"},
    "text continued": {"prompt": "Once upon a time", "max_tokens": 900, **_LONG},
    "text continued, with echo": {
        "prompt": "Once upon a time",
        "max_tokens": 600,
        "echo": True,
        **_LONG,
    },
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with two_workers(tmp_path_factory.mktemp("v1"), "demo", {**_DEMO, "toolCallParser": "hermes"}) as stack:
        yield stack


#: In every run; the others with ``--all``.
_ALWAYS = "chat"


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == _ALWAYS else pytest.mark.full) for kind in BODIES]
)
def test_the_answer_goes_on(stack: Stack, kind: str, tmp_path: Path) -> None:
    both_ready(stack)
    expected = ask(stack, BODIES[kind])
    assert expected.chunks > 2 * _KILL_AT, "it ends before it can be struck"
    both_ready(stack)
    struck = ask(stack, BODIES[kind], _KILL_AT)
    [(answer_id, _, _)] = struck.heads
    [(last, _)] = stack.client.xrevrange(log_of(answer_id), count=1)
    assert last.startswith(b"2-"), "it was struck after its end"
    assert struck.same_words(expected), (struck, expected)
    assert all(len(ids) == 1 for ids, _, _ in struck.calls.values())
    pairs = zip(struck.measured, expected.measured, strict=True)
    assert max((abs((one or 0.0) - (other or 0.0)) for (_, one), (_, other) in pairs), default=0.0) < 0.1


@pytest.mark.full
def test_the_budget_is_that_of_the_whole_answer(stack: Stack) -> None:
    """A prompt that just fits: what was delivered is neither asked for again nor counted as prompt."""
    both_ready(stack)
    [(prompt, _)] = ask(stack, {**_CHAT, "max_tokens": 1}).usages
    body = {**_CHAT, **_LONG, "max_tokens": _CONTEXT - prompt}
    expected = ask(stack, body)
    assert expected.usages == [(prompt, _CONTEXT - prompt)] and expected.finish_reasons == ["length"]
    both_ready(stack)
    struck = ask(stack, body, _KILL_AT)
    assert struck.same_words(expected), (struck, expected)
    [(answer_id, _, _)] = struck.heads
    request_id = f"gen-{answer_id.partition('-')[2]}"
    until(lambda: (last := token_log.last(stack.client, request_id)) and last.terminal, 10, "its end is written")
    end = token_log.last(stack.client, request_id)
    assert end is not None
    assert end.id.attempt == 2, "it was struck after its end"
    # What is metered, once: the prompt, and what the client got.
    usage = end.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, _CONTEXT - prompt)


@pytest.mark.parametrize(
    "kill_at", [pytest.param(1, marks=pytest.mark.full), _KILL_AT, pytest.param(60, marks=pytest.mark.full)]
)
def test_several_choices_go_on(stack: Stack, kill_at: int) -> None:
    """Greedy but for the name: vLLM refuses several greedy choices."""
    both_ready(stack)
    body = {**_CHAT, **_LONG, "n": 2, "temperature": 0.001, "max_tokens": 90}
    expected = Choices()
    expected.read(stack, body)
    struck = strike(stack, body, kill_at=kill_at)
    assert struck.texts == expected.texts and len(struck.texts) == 2
    assert sorted(struck.ends) == [(0, "length"), (1, "length")]
    assert struck.usages == expected.usages == [(expected.usages[0][0], 180)]
    assert len(struck.heads) == 1 and struck.roles == 2


@pytest.mark.full
@pytest.mark.parametrize("by_text", [False, True], ids=["by itself", "by a stop string"])
def test_of_several_choices_one_has_ended(stack: Stack, by_text: bool) -> None:
    """Each has its own end: one of them before its worker dies."""
    both_ready(stack)
    body: dict[str, Any] = {**_CHAT, "n": 3, "temperature": 1.5, "max_tokens": 400}
    for seed in range(100):
        body["seed"], expected = seed, Choices()
        expected.read(stack, body)
        # Of texts: how many chunks they come in is the machine's load.
        lengths = sorted(map(len, expected.texts.values()))
        if len(lengths) == 3 and lengths[0] + 200 < lengths[-1]:
            break
    else:
        raise AssertionError("with no seed one choice ends long before another")
    if by_text:
        # It ends where the longest one is not.
        longest = max(expected.texts.values(), key=len)
        shortest = min(expected.texts.values(), key=len)
        pieces = (shortest[begin : begin + 5] for begin in range(8, len(shortest) - 5))
        body["stop"] = next(piece for piece in pieces if piece not in longest and "\ufffd" not in piece)
        expected = Choices()
        expected.read(stack, body)
    struck = strike(stack, body, kill_when_ended=True)
    ended = struck.ended_before
    assert ended and {choice: struck.texts[choice] for choice in ended} == {
        choice: expected.texts[choice] for choice in ended
    }
    assert sorted(choice for choice, _ in struck.ends) == [0, 1, 2]
    assert len(struck.usages) == 1 and len(struck.heads) == 1


def strike(stack: Stack, body: dict[str, Any], **kill: Any) -> "Choices":
    """Ask until the worker was killed before it had made all: what a client has read may lie behind."""
    for _ in range(6):
        both_ready(stack)
        struck = Choices()
        struck.read(stack, body, **kill)
        if struck.attempts(stack) == 2:
            return struck
    raise AssertionError("the answer had always been made when its client had read so far")


class Choices:
    """What a client makes of a stream of several choices."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.chunks: dict[int, int] = {}
        self.ends: list[tuple[int, str]] = []
        self.usages: list[tuple[int, int]] = []
        self.heads: set[tuple[str, int]] = set()
        self.roles = 0
        #: Choices that had ended when the worker was killed.
        self.ended_before: set[int] = set()

    def read(self, stack: Stack, body: dict[str, Any], kill_at: int = 0, kill_when_ended: bool = False) -> None:
        common = {"model": "demo", "stream": True, "stream_options": {"include_usage": True}}
        with stack.openai() as client:
            create: Any = client.chat.completions.create
            for count, chunk in enumerate(create(**{**common, **body}), 1):
                self._add(chunk)
                if count == kill_at or (kill_when_ended and self.ends and not self.ended_before):
                    self.ended_before = {choice for choice, _ in self.ends}
                    kill_worker_of(stack, chunk.id)

    def attempts(self, stack: Stack) -> int:
        [(answer_id, _)] = self.heads
        [(last, _)] = stack.client.xrevrange(log_of(answer_id), count=1)
        return int(last.partition(b"-")[0])

    def _add(self, chunk: Any) -> None:
        self.heads.add((chunk.id, chunk.created))
        if chunk.usage:
            self.usages.append((chunk.usage.prompt_tokens, chunk.usage.completion_tokens))
        for choice in chunk.choices:
            self.texts[choice.index] = self.texts.get(choice.index, "") + (choice.delta.content or "")
            self.chunks[choice.index] = self.chunks.get(choice.index, 0) + 1
            self.roles += bool(choice.delta.role)
            self.ends += [(choice.index, choice.finish_reason)] if choice.finish_reason else []
