"""This system beside ``vllm serve``: the same model, the same bodies, and the answers are equal.

What is mended on purpose is written down here as a change of vLLM's answer, and in ``docs/openai.md`` for people.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from settings import ROOT
from testing import tool_model
from testing.bare_vllm import BareVllm
from testing.joined import as_joined, joined
from testing.stack import KEY, Stack
from tests.conftest import require
from tests.engine import paired_bodies
from tests.engine.paired_bodies import BAD, CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, GOOD, MESSAGES, RESPONSES, Body
from tests.engine.test_pooling import make_judge

pytestmark = [pytest.mark.full, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

_DEMO = {"enforce_eager": True, "kv_cache_memory_bytes": 2**27, "max_model_len": 1024}
#: Made anew for every answer.
_IDS = ("id", "created", "created_at", "completed_at", "call_id", "item_id", "signature")


#: vLLM's stream and its whole answer say two things, and so do ours (``docs/openai.md``, "known to differ").
VLLM_ITSELF_DIFFERS = {
    "chat: stop string": "one reasoning token fewer is counted in the stream",
    "chat: min_tokens": "special tokens behind the answer's end are shown in the stream",
    "chat: ignore_eos": "special tokens behind the answer's end are shown in the stream",
}


class Pair:
    """Both systems, and clients of them."""

    def __init__(self, stack: Stack, bare: dict[str, BareVllm]) -> None:
        self._bare = bare
        root = stack.openai_base.removesuffix("/v1")
        self._ours = httpx.Client(
            base_url=root, headers={"Authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False
        )
        self._theirs = httpx.Client(timeout=60, trust_env=False)

    def ask(self, body: Body, streamed: bool = False) -> tuple[httpx.Response, httpx.Response]:
        """Return vLLM's answer and ours."""
        document = {name: value for name, value in body.body.items() if value is not None}
        if streamed:
            document["stream"] = True
            if body.path in (CHAT, COMPLETIONS):
                document["stream_options"] = {"include_usage": True}
        bare = self._bare.get(document["model"])
        theirs = self._theirs.post(
            (bare or self._bare["vectors" if body.path == EMBEDDINGS else "tools"]).base + body.path,
            json={**document, "model": bare.name if bare else document["model"]},
        )
        return theirs, self._ours.post(body.path, json=document)

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    folder = tmp_path_factory.mktemp("bare")
    demo, judge = ROOT / "models" / "demo", folder / "judge"
    make_judge(judge)
    models = {
        "tools": tool_model.ENTRY,
        "vectors": {**_DEMO, "modelPath": str(demo), "task": "embed"},
        "judge": {**_DEMO, "modelPath": str(judge), "task": "score"},
        "kinds": {**_DEMO, "modelPath": str(judge), "task": "classify"},
    }
    parsers = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3", "enable_auto_tool_choice": True}
    tools = {"enforce_eager": True, "kv_cache_memory_bytes": 2**27, **parsers}
    stack = Stack(folder / "stack", {"default": "tools", "models": models})
    bare: dict[str, BareVllm] = {}

    def start(name: str, model: Path, **options: Any) -> None:
        bare[name] = BareVllm(folder, name, model, options)

    try:
        stack.start_web()
        stack.start_worker("w1", ["--models", ",".join(models)], seconds=280)
        start("tools", tool_model.PATH, **tools)
        start("vectors", demo, runner="pooling", convert="embed", **_DEMO)
        start("judge", judge, runner="pooling", convert="classify", **_DEMO)
        both = Pair(stack, {**bare, "kinds": bare["judge"]})
        yield both
        both.close()
    finally:
        for server in bare.values():
            server.stop()
        stack.close()


def plain(value: Any) -> Any:
    """Return an answer without what is made anew each time."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items() if name not in _IDS}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return value


def mended(body: Body, answer: dict[str, Any]) -> dict[str, Any]:
    """Return vLLM's whole answer with all that this system mends in it: nothing else may differ."""
    if "model" in answer:
        answer = {**answer, "model": body.body["model"]}
    if body.path == CHAT:
        for choice in answer["choices"]:
            message = choice["message"]
            if message.get("reasoning") is not None:
                message["reasoning_content"] = message["reasoning"]
    if body.path == COMPLETIONS and body.body.get("max_tokens") == 0:
        answer["usage"] = _nothing_new(answer["usage"])
    if body.path == COUNT_TOKENS:
        answer.pop("context_management")
    if body.path == MESSAGES:
        answer.setdefault("stop_sequence", None)
    return _mended_response(body, answer) if body.path == RESPONSES else answer


def _nothing_new(usage: dict[str, Any]) -> dict[str, Any]:
    """vLLM counts the token that it makes to score a prompt."""
    return {**usage, "completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}


def _mended_response(body: Body, answer: dict[str, Any]) -> dict[str, Any]:
    answer = {**answer, "error": None, "metadata": answer["metadata"] or {}}
    answer["text"] = answer["text"] or {"format": {"type": "text"}}
    cut = answer["status"] == "incomplete"
    for item in answer["output"]:
        if item["type"] == "reasoning":
            item["status"] = "completed"
    if cut:
        answer["output"][-1]["status"] = "incomplete"
    if not answer["tools"]:
        answer["tool_choice"] = "auto"
    if body.body.get("tool_choice") == "required":
        # Pinned to their schemas, as they must be called.
        answer["tools"] = [{**tool, "strict": True} for tool in answer["tools"]]
    return answer


@pytest.mark.parametrize("body", GOOD, ids=lambda body: body.name)
def test_answers_are_equal(pair: Pair, body: Body) -> None:
    theirs, ours = pair.ask(body)
    assert (theirs.status_code, ours.status_code) == (200, 200), (theirs.text, ours.text)
    assert plain(ours.json()) == plain(mended(body, theirs.json()))
    if not body.streams:
        return
    their_stream, our_stream = pair.ask(body, streamed=True)
    found = plain(joined(body.path, our_stream.text))
    # The stream tells what the whole answer tells, and what vLLM's stream tells.
    if body.name not in VLLM_ITSELF_DIFFERS:
        assert found == plain(as_joined(body.path, ours.json()))
    assert found == plain(joined_vllm_stream(body, their_stream.text))


def joined_vllm_stream(body: Body, stream: str) -> dict[str, Any]:
    answer = joined(body.path, stream)
    return mended(body, answer) if body.path in (RESPONSES, COMPLETIONS) else answer


@pytest.mark.parametrize("body", BAD, ids=lambda body: body.name)
def test_refusals_have_the_same_status_and_name_the_field(pair: Pair, body: Body) -> None:
    for streamed in (False, True) if body.streams else (False,):
        theirs, ours = pair.ask(body, streamed)
        assert 400 <= ours.status_code < 500, ours.text
        # vLLM begins some streams that it then refuses in their first event: refused is refused.
        told_late = streamed and theirs.status_code == 200 and '"error"' in theirs.text.splitlines()[0]
        assert ours.status_code == theirs.status_code or told_late, (theirs.text, ours.text)
        error = ours.json()["error"]
        assert error["type"] and error["message"]
        if body.path not in (MESSAGES, COUNT_TOKENS):
            assert error["param"], error


def test_the_tables_are_as_large_as_they_should_be() -> None:
    assert len(GOOD) >= 60 and len(BAD) >= 40
    names = [body.name for body in [*GOOD, *BAD]]
    assert len(set(names)) == len(names)
    assert {body.path for body in GOOD} == {
        value for name, value in vars(paired_bodies).items() if name.isupper() and isinstance(value, str)
    }
