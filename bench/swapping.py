"""``python -m bench.swapping [--seconds 60] [--clients 8] [--engine fake]``: two models by turns on one worker.

Clients ask either model as fast as they are answered, while one of the two is loaded at a time (``--swap``). Counted:
answers, those that were lost or wrong (greedy texts are compared with the undisturbed ones), loads, and what a request
waited. With ``--engine fake`` the pipeline alone is measured, and loading takes ``--load-seconds``.
"""

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from settings import ROOT
from testing.stack import Stack

_PROMPTS = ("Who are you?", "Tell a story", "What is the capital of France?", "What can you do?")
_TOKENS = 48


class Tally:
    """What the clients of one model saw. Times in seconds."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.lost: list[str] = []
        self.wrong = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8, help="of each model")
    parser.add_argument("--min-stay", type=float, default=10.0)
    parser.add_argument("--engine", default="", help="'fake' for the pipeline alone")
    parser.add_argument("--load-seconds", type=float, default=2.0, help="of the fake engine")
    options = parser.parse_args()
    entry: dict[str, Any] = {
        "modelPath": str(ROOT / "models" / "demo"),
        "enforceEager": True,
        "kvCacheMemoryBytes": 2**27,
    }
    if options.engine == "fake":
        entry = {"modelPath": "none", "engine": "fake", "tokensPerSecond": 100, "startSeconds": options.load_seconds}
    env = {
        "CY_LLM_SWAP_MIN_STAY_SECONDS": str(options.min_stay),
        "CY_LLM_SWAP_MAX_LOADED": "1",
        "CY_LLM_SWAP_WAIT_SECONDS": "600",
        "CY_LLM_WEB_THREADS": "300",
    }
    with tempfile.TemporaryDirectory() as folder:
        models = {"default": "a", "models": {"a": {**entry, "sleepMode": False}, "b": {**entry, "sleepMode": False}}}
        stack = Stack(Path(folder) / "stack", models, env=env)
        try:
            stack.start_web()
            stack.start_worker("swap", ["--models", "a,b", "--swap"], seconds=240)
            _report(stack, _run(stack, options.seconds, options.clients))
        finally:
            stack.close()


def _run(stack: Stack, seconds: float, clients: int) -> dict[str, Tally]:
    expected = {model: [_ask(stack, model, prompt) for prompt in _PROMPTS] for model in "ab"}
    tallies = {model: Tally() for model in "ab"}
    ends = time.monotonic() + seconds

    def client(model: str, number: int) -> None:
        while time.monotonic() < ends:
            which = number % len(_PROMPTS)
            began = time.monotonic()
            text = _ask(stack, model, _PROMPTS[which])
            tallies[model].waits.append(time.monotonic() - began)
            if text.startswith("!"):
                tallies[model].lost.append(text)
            tallies[model].wrong += text != expected[model][which]
            number += 1

    threads = [threading.Thread(target=client, args=(model, number)) for model in "ab" for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tallies


def _ask(stack: Stack, model: str, prompt: str) -> str:
    """Return the text, or '!' and why there is none."""
    body = {"modelId": model, "prompt": prompt, "generation": {"maxNewTokens": _TOKENS, "temperature": 0}}
    with stack.http() as http:
        http.timeout = 650
        answer = http.post("/inference", json=body)
    if answer.status_code != 200:
        return f"!{answer.status_code} {answer.text[:200]}"
    return str(answer.json()["choices"][0]["text"])


def _report(stack: Stack, tallies: dict[str, Tally]) -> None:
    print("| model | answers | lost | wrong | loads | wait p50 | p95 | longest |\n|---|---|---|---|---|---|---|---|")
    for model, tally in tallies.items():
        waits = sorted(tally.waits)
        loads = sum(state.get("loads", 0) for _, state in stack.fleet().states(model))
        times = statistics.median(waits), waits[int(len(waits) * 0.95)], waits[-1]
        print(
            f"| {model} | {len(waits)} | {len(tally.lost)} | {tally.wrong} | {loads} | "
            + " | ".join(f"{seconds:.2f} s" for seconds in times)
            + " |"
        )
    for model, tally in tallies.items():
        for text in sorted(set(tally.lost)):
            print(f"{model}: {text}")


if __name__ == "__main__":
    main()
