"""``python -m bench.faults.openai [--rounds N] [--streams N] [--kind WORD] [--row WORD]``: faults under ``/v1``.

Each kind of stream beside each fault; what every client got is compared with an undisturbed run: texts, tool calls,
ends, usage, and that each id is one.
"""

import argparse
import functools
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testing.faults.kinds import FAULTS, Fault, Fleet
from testing.faults.openai_streams import KINDS, MODELS, OpenAIStream, Said, plain_bodies
from testing.stack import Stack
from testing.waiting import until

#: Faults that end an answer's worker.
_ROWS = ("nothing", "worker kill -9", "engine process", "SIGSTOP", "one by one")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults.openai", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--kind", action="append", default=[], help="only kinds whose name holds this word")
    parser.add_argument("--row", action="append", default=[], help="only faults whose name holds this word")
    parser.add_argument("--model", type=Path, help="another model's folder: kinds without tools, in 32 bits")
    arguments = parser.parse_args()
    models, bodies = MODELS, KINDS
    if arguments.model is not None:
        models, bodies = {"default": "tools", "models": {"tools": _entry(arguments.model)}}, plain_bodies()
    kinds = [kind for kind in bodies if not arguments.kind or any(word in kind for word in arguments.kind)]
    words = arguments.row or _ROWS
    faults = [fault for fault in FAULTS if any(word in fault.name for word in words)]
    rng, whole = random.Random(1), True
    with tempfile.TemporaryDirectory(prefix="cy-llm-openai-faults-") as folder:
        # A worker that is replaced hands on what it has at once: its answers would end before.
        stack = Stack(Path(folder), models, env={"CY_LLM_WEB_THREADS": "128", "CY_LLM_DRAIN_SECONDS": "0"})
        try:
            stack.start_web()
            fleet = Fleet(stack, ["--models", "tools"])
            fleet.fill()
            print("| fault | kind | streams | struck | exact | errors | longest pause |\n|---|---|---|---|---|---|---|")
            for fault in faults:
                for kind in kinds:
                    make = functools.partial(OpenAIStream, stack, kind, bodies)
                    whole &= _cell(fleet, fault, kind, make, arguments.rounds, arguments.streams, rng)
        finally:
            stack.close()
    return 0 if whole else 1


def _entry(model: Path) -> dict[str, Any]:
    return {"modelPath": str(model), "dtype": "float32", "enforceEager": True, "kvCacheMemoryBytes": 2**29}


def _cell(
    fleet: Fleet,
    fault: Fault,
    kind: str,
    make: Callable[[], OpenAIStream],
    rounds: int,
    streams: int,
    rng: random.Random,
) -> bool:
    expected = make().run()
    assert expected.done and not expected.error, expected
    found = [said for _ in range(rounds) for said in _round(fleet, fault, make, streams, rng)]
    wrong = [said for said in found if said.words() != expected.words()]
    errors = sum(bool(said.error) for said in found)
    struck = sum(_attempts(fleet.stack, said) > 1 for said in found)
    pause = max(said.longest_pause for said in found)
    exact = len(found) - len(wrong)
    print(f"| {fault.name} | {kind} | {len(found)} | {struck} | {exact} | {errors} | {pause:.1f} s |", flush=True)
    for said in wrong[:2]:
        print(f"expected {expected}\nfound    {said}", file=sys.stderr)
    return not wrong


def _round(
    fleet: Fleet, fault: Fault, make: Callable[[], OpenAIStream], streams: int, rng: random.Random
) -> list[Said]:
    fleet.fill()
    running = [make() for _ in range(streams)]
    threads = [threading.Thread(target=stream.run, daemon=True) for stream in running]
    for thread in threads:
        thread.start()
    until(lambda: sum(stream.said.events > 2 for stream in running) >= streams * 3 // 4, 60, "streams run")
    threading.Event().wait(rng.uniform(0.0, 0.4))
    fault.inject(fleet)
    ends = time.monotonic() + 180
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    fault.restore(fleet)
    return [stream.said for stream in running]


def _attempts(stack: Stack, said: Said) -> int:
    rows = stack.client.xrevrange(f"cy:log:gen-{said.answer_id.partition('-')[2]}", count=1)
    return int(rows[0][0].partition(b"-")[0]) if rows else 0


if __name__ == "__main__":
    sys.exit(main())
