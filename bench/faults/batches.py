"""``python -m bench.faults.batches [--kills 20] [--lines 400] [--people 2]``: the runner of batches killed under load.

On real vLLM (the demo model), while people ask all the time: batch after batch, the runner dies by SIGKILL at each of
its points by turns. Counted: lines that were lost, that came twice, or that say something else than an undisturbed run.
"""

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai

from settings import ROOT
from testing.stack import Process, Stack
from webapp.openai.batches.runner import Point

_ENGINE = {"max_model_len": 1024, "kv_cache_memory_bytes": 2**28, "enforce_eager": True}
#: Point and how often it is met before the kill.
_POINTS = (
    (Point.CLAIMED, 1),
    (Point.VALIDATED, 1),
    ("answer", 1),
    ("answer", 40),
    (Point.SHOWN, 1),
    (Point.SHOWN, 2),
    (Point.FINALIZING, 1),
    (Point.WRITTEN, 1),
    (Point.ENDED, 1),
)
_HEAD = "| batch | killed at | lines | lost | doubled | other | seconds |\n|---|---|---|---|---|---|---|"
_URL: Any = "/v1/chat/completions"


def line(number: int) -> str:
    messages = [{"role": "user", "content": f"Tell me about the number {number}"}]
    body = {"model": "demo", "messages": messages, "max_tokens": 24, "temperature": 0}
    return json.dumps({"custom_id": f"r{number}", "method": "POST", "url": _URL, "body": body})


class People:
    """Ask one question after the other, with a pause, until they are told to stop."""

    def __init__(self, stack: Stack, count: int) -> None:
        self._stopped = threading.Event()
        self._stack = stack
        self.answers = 0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        with self._stack.openai() as sdk:
            # One asks every few seconds: in between there is room for lines.
            while not self._stopped.wait(4.0 + number):
                messages: Any = [{"role": "user", "content": "Who are you?"}]
                try:
                    sdk.chat.completions.create(model="demo", messages=messages, max_tokens=16)
                    self.answers += 1
                except openai.OpenAIError as error:
                    self.failures.append(str(error)[:200])

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def run(stack: Stack, module: str, *arguments: str) -> Process:
    return stack.run("runner", [sys.executable, "-m", module, *arguments])


def lines_of(sdk: openai.OpenAI, batch_id: str) -> tuple[list[dict[str, Any]], Any]:
    batch = sdk.batches.retrieve(batch_id)
    found = []
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id:
            found += [json.loads(each) for each in sdk.files.content(file_id).text.splitlines()]
    return found, batch


def said(each: dict[str, Any]) -> str:
    return str(each["response"]["body"]["choices"][0]["message"]["content"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--lines", type=int, default=400)
    parser.add_argument("--people", type=int, default=2)
    options = parser.parse_args()
    models = {"demo": {"model_path": str(ROOT / "models" / "demo"), **_ENGINE}}
    lost = doubled = other = kills = batches = 0
    with tempfile.TemporaryDirectory(prefix="cy-llm-batch-faults-") as folder:
        stack = Stack(Path(folder), models)
        try:
            stack.start_worker("w1", ["--models", "demo", "-c", "200"], seconds=120)
            stack.start_web()
            with stack.openai() as sdk:
                data = "\n".join(line(number) for number in range(options.lines)).encode()

                def begin() -> str:
                    file = sdk.files.create(file=("in.jsonl", data), purpose="batch")
                    return sdk.batches.create(input_file_id=file.id, endpoint=_URL, completion_window="24h").id

                undisturbed = begin()
                assert run(stack, "webapp.openai.batches").wait(300) == 0
                expected = {each["custom_id"]: said(each) for each in lines_of(sdk, undisturbed)[0]}
                people = People(stack, options.people)
                print(_HEAD)
                while kills < options.kills:
                    batch_id, struck, began = begin(), [], time.monotonic()
                    # Two kills a batch: another point each time.
                    for point, count in (_POINTS[kills % len(_POINTS)], _POINTS[(kills + 4) % len(_POINTS)]):
                        if kills < options.kills and sdk.batches.retrieve(batch_id).status != "completed":
                            status = run(stack, "testing.batch_crash", point, str(count)).wait(300)
                            if status == -signal.SIGKILL:
                                kills += 1
                                struck.append(f"{point} {count}")
                    assert run(stack, "webapp.openai.batches").wait(300) == 0
                    found, batch = lines_of(sdk, batch_id)
                    ids = Counter(each["custom_id"] for each in found)
                    gone, twice = len(set(expected) - set(ids)), sum(count - 1 for count in ids.values())
                    wrong = sum(not each["response"] or said(each) != expected[each["custom_id"]] for each in found)
                    counts = batch.request_counts
                    wrong += batch.status != "completed" or counts.completed != options.lines
                    lost, doubled, other, batches = lost + gone, doubled + twice, other + wrong, batches + 1
                    seconds = time.monotonic() - began
                    row = (batches, ", ".join(struck), len(found), gone, twice, wrong, round(seconds))
                    print("| " + " | ".join(map(str, row)) + " |", flush=True)
                people.stop()
            print(f"{kills} kills, {batches} batches of {options.lines}: {lost} lost, {doubled} doubled, {other} other")
            print(f"people: {people.answers} answers, {len(people.failures)} failures {people.failures[:2]}")
        finally:
            stack.close()
    return int(bool(lost or doubled or other))


if __name__ == "__main__":
    sys.exit(main())
