"""``python -m bench.compare [--rounds 5]``: this system beside bare ``vllm serve``, in one run.

With ``--against DIR`` beside another checkout of this system instead: the commit that a change began with.

Both serve the same model with the same engine arguments, and both run all the time; vLLM's own
``bench serve`` drives them in turn, over the OpenAI chat API. This system has everything on:
keys, queue, token log, failover, usage. Prints medians, and the median of the paired ratios with
their spread. ``CPU`` is the CPU time of everything but the engine core:
vLLM's API process there; front door, Redis and the worker's own process here.

Two kinds of load: so many streams at a time, and requests that come when they come (Poisson), at shares of what the
other system managed with 64 streams at a time.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.compare.client import drive
from bench.compare.systems import DEMO, ENGINE, NAME, Load, System, models, start_system
from bench.compare.table import HEAD, line, row
from testing.bare_vllm import BareVllm
from testing.stack import KEY, Stack

#: Tokens in and out: the cost of a request, and the cost of a token.
SHAPES = ((64, 64), (128, 256))
STREAMS = (1, 16, 64, 256)
#: Of the other system's requests a second at 64 streams.
SHARES = (0.3, 0.6, 0.8)
#: What that is measured with.
_CAPACITY = Load(64, 64, streams=64)

Measure = Callable[[System, Load, int], dict[str, float]]


def compare(bare: System, this: System, measure: Measure, rounds: int, loads: Iterator[Load]) -> list[dict[str, Any]]:
    rows = []
    for load in loads:
        for system in (bare, this):
            system.results = []
            measure(system, replace(load, streams=min(load.streams, 16), seconds=3.0), 0)
        for number in range(rounds):
            # Which goes first alternates, so that no drift favours one.
            for system in (bare, this) if number % 2 else (this, bare):
                system.results.append(measure(system, load, 1 + number))
        rows.append(row(load, bare, this))
        print(line(rows[-1]), flush=True)
    return rows


def wanted(arguments: argparse.Namespace, capacity: Callable[[], float]) -> Iterator[Load]:
    """Yield the loads that were asked for; ``capacity`` is asked only where one comes openly."""
    shapes = [shape for shape in SHAPES if not arguments.shape or f"{shape[0]}/{shape[1]}" in arguments.shape]
    every = not arguments.streams and not arguments.share
    for tokens_in, tokens_out in shapes:
        for streams in arguments.streams or (STREAMS if every else ()):
            yield Load(tokens_in, tokens_out, streams=streams)
    shares = arguments.share or (SHARES if every else ())
    if shares:
        most = capacity()
        print(f"{most:.1f} requests/s of 64/64 at 64 streams: the other system's capacity", file=sys.stderr)
        for share in shares:
            yield Load(64, 64, rate=share * most)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, action="append", default=[], help="only these numbers of streams")
    parser.add_argument("--share", type=float, action="append", default=[], help="only these shares of the capacity")
    parser.add_argument("--shape", action="append", default=[], help="of closed loads only these, as 64/64")
    parser.add_argument("--model", type=Path, default=DEMO, help="another model's folder")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--against", type=Path, help="another checkout of this system, to stand in for vllm serve")
    arguments = parser.parse_args()
    os.environ["OPENAI_API_KEY"] = KEY
    model = arguments.model.resolve()

    def measure(system: System, load: Load, seed: int) -> dict[str, float]:
        return drive(system, load, model, seed)

    with tempfile.TemporaryDirectory(prefix="cy-llm-compare-") as folder:
        stacks = [Stack(Path(folder) / "stack", models(model))]
        bare = None
        try:
            this = start_system("this system", stacks[0])
            if arguments.against is not None:
                stacks.append(Stack(Path(folder) / "other", stacks[0].models, root=arguments.against.resolve()))
                other = start_system("the other checkout", stacks[1])
            else:
                bare = server = BareVllm(Path(folder), NAME, model, ENGINE)
                other = System("vllm serve", bare.base, lambda: [server.process.pid])

            def capacity() -> float:
                measured = [measure(other, _CAPACITY, seed)["requests_per_second"] for seed in range(3)]
                return statistics.median(measured)

            print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
            print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
            rows = compare(other, this, measure, arguments.rounds, wanted(arguments, capacity))
            if arguments.json:
                arguments.json.write_text(json.dumps(rows))
            return 0
        finally:
            for stack in stacks:
                stack.close()
            if bare is not None:
                bare.stop()


if __name__ == "__main__":
    sys.exit(main())
