"""``python -m bench.pipeline [--rounds 3]``: the pipeline alone, on the fake engine, whose tokens cost next to nothing.

Front door, Redis and worker pass on tokens as fast as they can (chunks merge when their consumer
is behind), or 50 a second for each stream. Prints for each number of streams and each length the
tokens a second, CPU a token of the three together, the tokens a second that one core of theirs
would pass on, and what the longest of them held in memory: whether the cost grows with the number
of streams, or with the length of a stream. Redis' commands and their cost come last.

``--requests`` asks for one token each time instead: what a request costs, and how many a second there are;
``--web-workers 2`` with two processes of the front door.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.streams import follow
from testing.processes import children, cpu, rss
from testing.stack import Process, Stack

FREE = ((1, 64), (1, 4096), (16, 64), (16, 4096), (64, 64), (64, 4096), (256, 64), (256, 1024))
#: The paced engine gives every stream this many tokens a second.
PACE = 50.0
PACED = ((16, 200), (64, 200), (256, 200))
#: Of one token each: a request without its stream.
REQUESTS = ((1, 1), (16, 1), (64, 1))


@dataclass
class Row:
    """One round's numbers. CPU in microseconds a token."""

    tokens_per_second: float
    web: float
    worker: float
    redis: float

    @property
    def all(self) -> float:
        return self.web + self.worker + self.redis


class System:
    """One system on the fake engine."""

    def __init__(self, folder: Path, pace: float, web_workers: int) -> None:
        models = {"load": {"model_path": "none", "engine": "fake", "tokensPerSecond": pace}}
        self.stack = Stack(folder, models, env={"CY_LLM_WEB_WORKERS": str(web_workers)})
        self.worker: Process = self.stack.start_worker("load", ["--models", "load", "-c", "300"])
        self.web = children(self.stack.start_web().pid)

    def used(self) -> list[float]:
        return [sum(cpu(pid) for pid in self.web), cpu(self.worker.pid), cpu(self.stack.redis.pid)]

    def memory(self) -> float:
        """Private memory of all three, in MiB."""
        return sum(rss(pid) for pid in (*self.web, self.worker.pid, self.stack.redis.pid)) / 2**20

    async def round(self, streams: int, tokens: int) -> Row:
        # Short streams in series, so that a round is long enough for the clock of CPU times (10 ms).
        times = max(1, min(20_000 // (streams * tokens), 2_000 // streams))
        before, began = self.used(), time.monotonic()
        for _ in range(times):
            seen = await asyncio.gather(*(follow(self.stack.port, number, tokens) for number in range(streams)))
            assert all(one.done for one in seen), [one.error for one in seen if not one.done][:3]
        took, total = time.monotonic() - began, streams * tokens * times
        return Row(
            total / took, *((after - first) / total * 1e6 for first, after in zip(before, self.used(), strict=True))
        )


def measure(system: System, grid: tuple[tuple[int, int], ...], rounds: int, name: str) -> None:
    print(
        f"| {name}: streams | tokens each | tokens/s | us of CPU a token | web, worker, Redis | tokens/s a core | MiB |"
    )
    print("|---|---|---|---|---|---|---|")
    for streams, tokens in grid:
        found = [asyncio.run(system.round(streams, tokens)) for _ in range(rounds)]
        speed = statistics.median(row.tokens_per_second for row in found)
        cost = statistics.median(row.all for row in found)
        parts = ", ".join(f"{statistics.median(getattr(row, part) for row in found):.1f}" for part in PARTS)
        memory = f"{system.memory():.0f}"
        print(
            f"| {streams} | {tokens} | {speed:,.0f} | {cost:.1f} | {parts} | {1e6 / cost:,.0f} | {memory} |", flush=True
        )


PARTS = ("web", "worker", "redis")


def commands(stack: Stack) -> None:
    """Print what Redis was asked most, and what it cost."""
    stats: Any = stack.client.info("commandstats")
    print("\n| Redis command | calls | us each | share of its time |\n|---|---|---|---|")
    total = sum(entry["usec"] for entry in stats.values())
    for name, entry in sorted(stats.items(), key=lambda item: -item[1]["usec"])[:10]:
        share = entry["usec"] / total
        print(f"| {name.removeprefix('cmdstat_')} | {entry['calls']:,} | {entry['usec_per_call']:.1f} | {share:.0%} |")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", action="store_true", help="only requests of one token")
    parser.add_argument("--web-workers", type=int, default=1, help="processes of the front door")
    arguments = parser.parse_args()
    every = (("as fast as it can", 0.0, FREE), (f"{PACE:.0f} tokens/s a stream", PACE, PACED))
    grids = (("one token each", 0.0, REQUESTS),) if arguments.requests else every
    with tempfile.TemporaryDirectory(prefix="cy-llm-pipeline-") as folder:
        for name, pace, grid in grids:
            system = System(Path(folder) / f"pace-{pace:.0f}", pace, arguments.web_workers)
            try:
                asyncio.run(system.round(16, 64))
                system.stack.client.config_resetstat()
                measure(system, grid, arguments.rounds, name)
                commands(system.stack)
            finally:
                system.stack.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
