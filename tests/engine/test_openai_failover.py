"""Streams of ``/v1`` whose worker is killed, on real vLLM, through OpenAI's own client: what arrives is what an
undisturbed run says, in one piece."""

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest

from settings import ROOT
from testing.stack import Stack
from tests.conftest import require
from tests.engine.failover import ask, both_ready, log_of

_log = logging.getLogger(__name__)
pytestmark = [pytest.mark.timeout(600)]

_DEMO = {"modelPath": str(ROOT / "models" / "demo"), "enforceEager": True, "kvCacheMemoryBytes": 2**27}
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
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    models = {"default": "demo", "models": {"demo": {**_DEMO, "toolCallParser": "hermes"}}}
    stack = Stack(tmp_path_factory.mktemp("v1"), models)
    try:
        stack.start_web()
        stack.spawn_worker("w1")
        stack.spawn_worker("w2")
        yield stack
    finally:
        stack.close()


#: In every run; the others with ``--all``.
_ALWAYS = ("chat", "JSON schema")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in _ALWAYS else pytest.mark.full) for kind in BODIES]
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
def test_several_choices_go_on_or_say_that_they_cannot(stack: Stack) -> None:
    """They are made once more from the start: what says something else than was delivered is never sent behind it."""
    both_ready(stack)
    body = {**_CHAT, **_LONG, "n": 2, "temperature": 1.0, "seed": 1}
    try:
        found = ask(stack, body, _KILL_AT)
    except openai.APIError as error:
        assert "cannot be continued" in str(error)
    else:
        assert found.finish_reasons == ["length", "length"]
        [(_, completion)] = found.usages
        assert completion == 2 * _CHAT["max_tokens"]  # type: ignore[operator]
        assert (found.roles, len(found.heads)) == (2, 1)
