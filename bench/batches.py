"""``python -m bench.batches [--lines 1500] [--tokens 64] [--lines-at-once 64]``: batches beside people.

On the demo model. Two numbers: what a batch gets done while nobody is there, against clients that ask the same requests
as fast as they are answered; and how long a person waits for the first token while a batch runs, against an idle
system. A person comes, asks a few times, and leaves; the first question of each visit is told apart from the others.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import openai

from settings import ROOT
from testing.stack import Stack
from testing.waiting import until

_ENGINE = {"max_model_len": 2048, "kv_cache_memory_bytes": 2**29, "enforce_eager": True, "max_num_seqs": 256}


def body(number: int, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Tell me about the number {number}"}]
    more = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return {"model": "demo", "messages": messages, **more}


def closed_loop(stack: Stack, lines: int, tokens: int, clients: int) -> float:
    """Tokens a second with so many clients that each ask their next question when they have the answer."""
    numbers, lock, done = iter(range(lines)), threading.Lock(), [0]

    def ask() -> None:
        with stack.openai() as sdk:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                asked = body(number, tokens)
                more = {"ignore_eos": asked.pop("ignore_eos")}
                answer = sdk.chat.completions.create(**asked, extra_body=more)
                with lock:
                    done[0] += answer.usage.completion_tokens if answer.usage else 0

    began = time.monotonic()
    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done[0] / (time.monotonic() - began)


def begin(sdk: openai.OpenAI, lines: int, tokens: int) -> str:
    """Begin a batch, and return its id once it runs."""
    url = "/v1/chat/completions"
    texts = [
        json.dumps({"custom_id": str(n), "method": "POST", "url": url, "body": body(n, tokens)}) for n in range(lines)
    ]
    file = sdk.files.create(file=("in.jsonl", "\n".join(texts).encode()), purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h")
    until(lambda: sdk.batches.retrieve(batch.id).status == "in_progress", 60, "the batch runs")
    return batch.id


def batch_alone(sdk: openai.OpenAI, lines: int, tokens: int) -> float:
    """Tokens a second of a batch, from its first line to its last."""
    batch_id = begin(sdk, lines, tokens)
    began = time.monotonic()

    def ended() -> bool:
        counts = sdk.batches.retrieve(batch_id).request_counts
        return counts is not None and counts.completed == lines

    until(ended, 600, "the batch is done")
    return lines * tokens / (time.monotonic() - began)


def visit(sdk: openai.OpenAI, questions: int) -> list[float]:
    """A person asks a few questions; returns the time to the first token of each. Seconds."""
    waits = []
    for number in range(questions):
        asked = body(10_000 + number, 16)
        more = {"ignore_eos": asked.pop("ignore_eos")}
        began = time.monotonic()
        with sdk.chat.completions.create(**asked, stream=True, extra_body=more) as stream:
            for event in stream:
                if event.choices and event.choices[0].delta.content:
                    waits.append(time.monotonic() - began)
                    break
            for _ in stream:
                pass
    return waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--lines-at-once", type=int, default=64)
    parser.add_argument("--visits", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    models = {"demo": {"model_path": str(ROOT / "models" / "demo"), **_ENGINE}}
    env = {"CY_LLM_BATCH_LINES": str(options.lines_at_once)}
    with tempfile.TemporaryDirectory(prefix="cy-llm-batches-") as folder:
        stack = Stack(Path(folder), models, env=env)
        try:
            stack.start_worker("w1", ["--models", "demo", "-c", "300"], seconds=120)
            stack.start_web()
            stack.spawn_background()
            with stack.openai() as sdk:
                closed_loop(stack, 200, options.tokens, options.lines_at_once)
                pairs = []
                for _ in range(options.rounds):
                    loop = closed_loop(stack, options.lines, options.tokens, options.lines_at_once)
                    # Lines are asked once nobody has been there for a few seconds; that is not counted.
                    time.sleep(5)
                    pairs.append((loop, batch_alone(sdk, options.lines, options.tokens)))
                ratios = sorted(batch / loop for loop, batch in pairs)
                print(f"closed loop / batch, tokens/s: {[(round(loop), round(batch)) for loop, batch in pairs]}")
                print(
                    f"idle batch: {statistics.median(ratios):.2f} of the closed loop ({ratios[0]:.2f}-{ratios[-1]:.2f})"
                )
                alone = [visit(sdk, 6) for _ in range(options.visits)]
                batch_id = begin(sdk, options.lines * 20, options.tokens)
                beside = []
                for _ in range(options.visits):
                    # Nobody has been there for a while: the batch fills the engine.
                    until(lambda: (found := stack.find("w1")) and found.background > 32, 60, "the batch fills it")
                    beside.append(visit(sdk, 6))
                sdk.batches.cancel(batch_id)
            for name, pick in (("first of a visit", slice(0, 1)), ("the others", slice(1, None))):
                idle, busy = (
                    statistics.median(wait for waits in visits for wait in waits[pick]) for visits in (alone, beside)
                )
                print(f"TTFT p50, {name}: {idle * 1000:.0f} ms alone, {busy * 1000:.0f} ms beside: {busy / idle:.2f}")
        finally:
            stack.close()


if __name__ == "__main__":
    main()
