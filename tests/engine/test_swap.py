"""Two models on one worker with real vLLM, of which one is loaded at a time: what is asked of the one brings it, what
runs on the other ends whole, and an engine that has gone leaves nothing behind."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec

import psutil
import pytest
from openai.types.chat import ChatCompletionMessageParam

from settings import ROOT
from testing.stack import Process, Stack
from testing.waiting import until
from tests.conftest import require
from tests.integration.live_models import status
from tests.integration.swap_stack import Asked, loads

_log = logging.getLogger(__name__)
pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

_DEMO = {"modelPath": str(ROOT / "models" / "demo"), "enforceEager": True, "kvCacheMemoryBytes": 2**26}
#: Loads of each model; by hand: 10, for the 20 of the report that this is about.
_ROUNDS = int(os.environ.get("CY_SWAP_ROUNDS", "1"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    models = {
        "default": "a",
        "models": {"a": {**_DEMO, "maxModelLen": 4096}, "b": {**_DEMO, "enableLora": True, "maxLoras": 1}},
    }
    env = {"CY_LLM_SWAP_MIN_STAY_SECONDS": "1", "CY_LLM_SWAP_MAX_LOADED": "1"}
    stack = Stack(tmp_path_factory.mktemp("swap"), models, env=env)
    try:
        stack.start_web()
        stack.start_worker("real", ["--models", "a,b", "--swap"], seconds=180)
        yield stack
    finally:
        stack.close()


def _engines(worker: Process) -> dict[int, int]:
    """The worker's children: pid -> memory in bytes."""
    children = psutil.Process(worker.pid).children(recursive=True)
    return {child.pid: child.memory_info().rss for child in children if child.is_running()}


def _worker(stack: Stack) -> Process:
    return next(process for process in stack.processes if process.name == "real")


def test_models_take_turns_and_leave_nothing(stack: Stack) -> None:
    """M01 and M03."""
    alone = Story(stack)
    expected = alone.text(240)
    assert len(expected) > 1000
    counts: list[int] = []
    for number in range(_ROUNDS):
        before = loads(stack, "a"), loads(stack, "b")
        running = [Story(stack) for _ in range(4)]
        for story in running:
            assert story.begun.wait(60)
        began = time.monotonic()
        other = Asked(stack, "b")
        assert other.result(240).status_code == 200
        _log.info("round %d: b came after %.1f s", number, time.monotonic() - began)
        assert [story.text(240) for story in running] == [expected] * 4
        counts.append(len(_engines(_worker(stack))))
        back = Asked(stack, "a")
        assert back.result(240).status_code == 200
        _log.info("round %d: a came back after %.1f s", number, back.seconds)
        assert (loads(stack, "a"), loads(stack, "b")) == (before[0] + 1, before[1] + 1)
    engines = _engines(_worker(stack))
    # As many processes after every load as after the first.
    assert {*counts, len(engines)} == {counts[0]}, (counts, engines)


def test_a_killed_engine_leaves_no_orphan_and_its_worker_is_replaced(stack: Stack) -> None:
    """M03: kill -9 to the worker takes the engine with it."""
    worker = _worker(stack)
    until(lambda: "ready" in _states(stack), 180, "a model is loaded")
    children = set(_engines(worker))
    worker.popen.kill()
    until(lambda: not any(psutil.pid_exists(pid) and _alive(pid) for pid in children), 30, "the engine has ended")


def test_a_worker_that_is_killed_while_it_loads_leaves_no_core_behind(stack: Stack) -> None:
    """M03: a core that still imports what it needs would wait for its worker for ever."""
    worker = stack.spawn_worker("early", ["--models", "a"])
    until(lambda: "--multiprocessing-fork" in _command_lines(worker), 120, "the engine core is being started")
    children = set(_engines(worker))
    worker.popen.kill()
    until(lambda: not any(psutil.pid_exists(pid) and _alive(pid) for pid in children), 30, "its processes have ended")


def _command_lines(worker: Process) -> str:
    lines = []
    for child in psutil.Process(worker.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(child.cmdline()))
    return "\n".join(lines)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _states(stack: Stack) -> list[str]:
    with stack.http() as http:
        return [status(http, model) for model in "ab"]


class Story(threading.Thread):
    """A greedy text of ``a``, streamed in a thread."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self.begun = threading.Event()
        self._stack = stack
        self._parts: list[str] = []
        self._ended = False
        self.start()

    def run(self) -> None:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell a story"}]
        with self._stack.openai() as client:
            stream = client.chat.completions.create(
                model="a",
                messages=messages,
                temperature=0,
                max_tokens=3000,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            for chunk in stream:
                self._parts.append(chunk.choices[0].delta.content or "")
                self._ended = chunk.choices[0].finish_reason == "length"
                self.begun.set()

    def text(self, seconds: float) -> str:
        """Wait for the whole text."""
        self.join(seconds)
        assert self._ended, "the stream has not ended as it should"
        return "".join(self._parts)
