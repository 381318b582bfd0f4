"""What the tests of ``--swap`` share: a worker with models of which one fits at a time, and requests in threads."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from testing.stack import Stack

#: Seconds.
LOAD, STAY, WAIT = 0.3, 1.0, 20.0
_FAKE = {"modelPath": "none", "engine": "fake", "tokensPerSecond": 50, "startSeconds": LOAD}
#: Of ``a``, ``b`` and ``c`` one fits at a time; ``small`` fits beside any of them, and ``pinned`` leaves no room.
MODELS: dict[str, Any] = {
    "default": "a",
    "models": {
        "a": {**_FAKE, "gpuMemoryUtilization": 0.7, "sleepMode": False},
        "b": {**_FAKE, "gpuMemoryUtilization": 0.7, "sleepMode": False, "aliases": ["bee"]},
        "c": {**_FAKE, "gpuMemoryUtilization": 0.7, "sleepMode": False},
        "small": {**_FAKE, "gpuMemoryUtilization": 0.2},
        "sleepy": {**_FAKE, "gpuMemoryUtilization": 0.7, "startSeconds": 2},
        "pinned": {**_FAKE, "gpuMemoryUtilization": 0.7, "pinned": True},
        "alone": {**_FAKE, "gpuMemoryUtilization": 0.7},
    },
}


def make_stack(folder: Path, **env: str) -> Stack:
    """A stack with nothing started, whose times are short."""
    short = {
        "CY_LLM_KEEPALIVE_SECONDS": "0.3",
        "CY_LLM_SWAP_MIN_STAY_SECONDS": str(STAY),
        "CY_LLM_SWAP_WAIT_SECONDS": str(WAIT),
        "CY_LLM_VAR": str(folder / "var"),
    }
    return Stack(folder / "stack", MODELS, env={**short, **env})


@pytest.fixture
def swapping(tmp_path: Path) -> Iterator[Stack]:
    """One worker that swaps ``a``, ``b`` and ``c``; ``a`` is loaded first."""
    stack = make_stack(tmp_path)
    try:
        stack.start_worker("w1", ["--models", "a,b,c", "--swap"])
        stack.start_web()
        yield stack
    finally:
        stack.close()


class Asked(threading.Thread):
    """One request in a thread: its answer, when it came, and how long it took."""

    def __init__(self, stack: Stack, model: str, tokens: int = 3, prompt: str = "x", **sampling: float) -> None:
        super().__init__(daemon=True)
        self._stack, self._model, self._tokens, self._prompt = stack, model, tokens, prompt
        self._sampling = sampling
        self.answer: httpx.Response | None = None
        self.seconds = 0.0
        self.at = 0.0
        self.start()

    def run(self) -> None:
        began = time.monotonic()
        with self._stack.http() as http:
            generation = {"maxNewTokens": self._tokens, **self._sampling}
            body = {"modelId": self._model, "prompt": self._prompt, "generation": generation}
            self.answer = http.post("/inference", json=body)
        self.at = time.monotonic()
        self.seconds = self.at - began

    def result(self, seconds: float = 60) -> httpx.Response:
        """Wait for the answer."""
        self.join(seconds)
        assert self.answer is not None, f"no answer of {self._model} within {seconds} s"
        return self.answer


def listed(stack: Stack) -> set[str]:
    """What OpenAI's client is told that it can ask."""
    with stack.openai() as client:
        return {model.id for model in client.models.list().data}


def loads(stack: Stack, model: str) -> int:
    """How often the worker has loaded or woken a model."""
    return sum(state.get("loads", 0) for _, state in stack.presence.fleet(fresh=True).states(model))
