"""``python -m bench.compare [--rounds 6]``: this system beside bare ``vllm serve``, in one run.

With ``--against DIR`` beside another checkout of this system instead: the commit that a change began with.

Both serve the same model with the same engine arguments, and both run all the time; vLLM's own
``bench serve`` drives them in turn, over the OpenAI chat API. This system has everything on:
keys, queue, token log, failover, usage. Prints medians, and the median of the paired ratios with
their spread. ``CPU`` is the CPU time of everything but the engine core:
vLLM's API process there; front door, Redis and the worker's own process here.

Two kinds of load: so many streams at a time, and requests that come when they come (Poisson), at shares of what the
other system managed with 64 streams at a time.

Half of the rounds are run after both were started in one order, half after they were started in the other, and each
measurement follows a short load of its own: where the kernel pages out what lies idle, whoever was started first, or
waited last, pays for it (one commit beside itself: 0.92 of its own tokens/s).
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.compare.client import drive
from bench.compare.systems import DEMO, ENGINE, NAME, Load, System, models, start_system
from bench.compare.table import HEAD, Pair, line, row
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


def compare(bare: System, this: System, measure: Measure, rounds: range, load: Load) -> list[Pair]:
    pairs = []
    for number in rounds:
        # Which goes first alternates, so that no drift favours one.
        order = (bare, this) if number % 2 else (this, bare)
        measured = {system.name: measure(system, load, 1 + number) for system in order}
        pairs.append((measured[bare.name], measured[this.name]))
    return pairs


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


class Pairing:
    """Both systems, started in one order or the other, until the block ends."""

    def __init__(self, model: Path, against: Path | None) -> None:
        self._models = models(model)
        self._model = model
        self._against = against
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cy-llm-compare-")))

    def __enter__(self) -> "Pairing":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, this_first: bool) -> tuple[System, System]:
        """Return the other system and this one."""
        if this_first:
            this = self._start_this()
            return self._start_other(), this
        return self._start_other(), self._start_this()

    def _start_this(self) -> System:
        stack = Stack(self._folder / "stack", self._models)
        self._stack.callback(stack.close)
        return start_system("this system", stack)

    def _start_other(self) -> System:
        if self._against is not None:
            stack = Stack(self._folder / "other", self._models, root=self._against)
            self._stack.callback(stack.close)
            return start_system("the other checkout", stack)
        server = BareVllm(self._folder, NAME, self._model, ENGINE)
        self._stack.callback(server.stop)
        return System("vllm serve", server.base, lambda: [server.process.pid])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="an even number: half of them in each order of starting")
    parser.add_argument("--streams", type=int, action="append", default=[], help="only these numbers of streams")
    parser.add_argument("--share", type=float, action="append", default=[], help="only these shares of the capacity")
    parser.add_argument("--shape", action="append", default=[], help="of closed loads only these, as 64/64")
    parser.add_argument("--model", type=Path, default=DEMO, help="another model's folder")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--against", type=Path, help="another checkout of this system, to stand in for vllm serve")
    arguments = parser.parse_args()
    if arguments.rounds < 2 or arguments.rounds % 2:
        parser.error("--rounds must be an even number")
    os.environ["OPENAI_API_KEY"] = KEY
    model = arguments.model.resolve()

    def measure(system: System, load: Load, seed: int) -> dict[str, float]:
        # Prompts that no measurement has: none shall find its own computed already.
        drive(system, load.warming, model, 1000 + seed)
        return drive(system, load, model, seed)

    loads: list[Load] = []
    pairs: dict[Load, list[Pair]] = {}
    for half in (0, 1):
        rounds = range(half * arguments.rounds // 2, (half + 1) * arguments.rounds // 2)
        with Pairing(model, arguments.against and arguments.against.resolve()) as pairing:
            other, this = pairing.start(this_first=half == 0)

            def capacity(system: System = other) -> float:
                measured = [measure(system, _CAPACITY, seed)["requests_per_second"] for seed in (501, 502, 503)]
                return statistics.median(measured)

            loads = loads or list(wanted(arguments, capacity))
            for load in loads:
                pairs.setdefault(load, []).extend(compare(other, this, measure, rounds, load))
                print(f"half {half + 1}: {load.shape}, {load.name}", file=sys.stderr, flush=True)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    rows: list[dict[str, Any]] = [row(load, measured) for load, measured in pairs.items()]
    for each in rows:
        print(line(each))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
