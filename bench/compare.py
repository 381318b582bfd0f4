"""``python -m bench.compare [--rounds 5]``: this system beside bare ``vllm serve``, in one run.

With ``--against DIR`` beside another checkout of this system instead: the commit that a change began with.

Both serve the same model with the same engine arguments, and both run all the time; vLLM's own
``bench serve`` drives them in turn, over the OpenAI chat API. This system has everything on:
keys, queue, token log, failover, usage. Prints medians, and the median of the paired ratios with
their spread. ``CPU`` is the CPU time of everything but the engine core, in seconds for 1,000 tokens:
vLLM's API process there; front door, Redis and the worker's own process here.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.streams import cpu, workers_of
from settings import ROOT
from testing.bare_vllm import BareVllm
from testing.stack import KEY, Stack
from testing.waiting import until

MODEL = ROOT / "models" / "demo"
#: Tokens in and out: the cost of a request, and the cost of a token.
FORMATS = ((64, 64), (128, 256))
CONCURRENCIES = (1, 16, 64, 256)
ENGINE = {"max_model_len": 2048, "kv_cache_memory_bytes": 2**29, "enforce_eager": True, "max_num_seqs": 256}


@dataclass
class System:
    """One of the two."""

    name: str
    url: str
    #: Processes whose CPU time counts.
    pids: Callable[[], list[int]]
    results: list[dict[str, float]] = field(default_factory=list)

    def cpu(self) -> float:
        return sum(cpu(pid) for pid in self.pids())


def drive(system: System, shape: tuple[int, int], concurrency: int, seed: int) -> dict[str, float]:
    """Let vLLM's own client load a system; return what it measured."""
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    prompts = max(8, 3 * concurrency if concurrency < 256 else 2 * concurrency)
    options = {
        "backend": "openai-chat",
        "base-url": system.url,
        "endpoint": "/v1/chat/completions",
        "model": "demo",
        "tokenizer": str(MODEL),
        "dataset-name": "random",
        "random-input-len": shape[0],
        "random-output-len": shape[1],
        "num-prompts": prompts,
        "max-concurrency": concurrency,
        "seed": seed,
        # The two have different defaults, and top_p below 1 doubles the cost of a step on a CPU. The
        # request names them, so that both engines do the same work; these are vLLM's own defaults.
        "temperature": 1.0,
        "top_p": 1.0,
        "percentile-metrics": "ttft,itl",
        "metric-percentiles": "50,99",
        "ready-check-timeout-sec": 0,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    before, said = system.cpu(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        result = main(parser.parse_args([*arguments, "--ignore-eos", "--disable-tqdm"]))
    used = system.cpu() - before
    tokens = result["total_output_tokens"]
    if result["completed"] < prompts:
        print(f"{system.name}: {prompts - result['completed']} of {prompts} failed", file=sys.stderr)
    return {
        "tokens_per_second": result["output_throughput"],
        "ttft_p50": result["median_ttft_ms"],
        "ttft_p99": result["p99_ttft_ms"],
        "itl_p50": result["median_itl_ms"],
        "itl_p99": result["p99_itl_ms"],
        "cpu": used / tokens * 1000,
        "failed": prompts - result["completed"],
    }


def compare(bare: System, this: System, rounds: int, concurrencies: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for shape in FORMATS:
        for concurrency in concurrencies:
            for system in (bare, this):
                system.results = []
                drive(system, shape, min(concurrency, 16), 0)
            for number in range(rounds):
                # Which goes first alternates, so that no drift favours one.
                for system in (bare, this) if number % 2 else (this, bare):
                    system.results.append(drive(system, shape, concurrency, 1 + number))
            rows.append(row(shape, concurrency, bare, this))
            print(line(rows[-1]), flush=True)
    return rows


def row(shape: tuple[int, int], concurrency: int, bare: System, this: System) -> dict[str, Any]:
    values: dict[str, Any] = {"shape": shape, "streams": concurrency}
    for name in bare.results[0]:
        values[name] = [statistics.median(result[name] for result in system.results) for system in (bare, this)]
    pairs = list(zip(bare.results, this.results, strict=True))
    for name in ("tokens_per_second", "ttft_p50"):
        ratios = sorted(mine[name] / theirs[name] for theirs, mine in pairs)
        values[f"{name}_ratio"] = (statistics.median(ratios), ratios[0], ratios[-1])
    values["ttft_difference"] = statistics.median(mine["ttft_p50"] - theirs["ttft_p50"] for theirs, mine in pairs)
    values["failed"] = sum(result["failed"] for result in this.results)
    return values


def line(values: dict[str, Any]) -> str:
    def both(name: str, digits: int) -> str:
        bare, this = values[name]
        return f"{bare:.{digits}f} / {this:.{digits}f}"

    ratio, low, high = values["tokens_per_second_ratio"]
    ttft, ttft_low, ttft_high = values["ttft_p50_ratio"]
    cells = [
        f"{values['shape'][0]}/{values['shape'][1]}",
        str(values["streams"]),
        both("tokens_per_second", 0),
        f"**{ratio:.2f}** ({low:.2f}-{high:.2f})",
        both("ttft_p50", 0),
        f"{ttft:.2f} ({ttft_low:.2f}-{ttft_high:.2f}), {values['ttft_difference']:+.0f} ms",
        both("ttft_p99", 0),
        both("itl_p50", 1),
        both("itl_p99", 1),
        both("cpu", 2),
        str(values["failed"]),
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "in/out",
    "streams",
    "tokens/s: bare / this",
    "ratio (spread)",
    "TTFT p50 ms",
    "ratio (spread), difference",
    "TTFT p99 ms",
    "ITL p50 ms",
    "ITL p99 ms",
    "CPU s per 1,000 tokens",
    "failed",
)


def start_system(name: str, stack: Stack) -> System:
    """Start one worker and a front door from the stack's checkout."""
    worker = stack.spawn_worker("own", ["-c", "300"])
    until(lambda: stack.find("own"), 120, "the worker is ready")
    web = workers_of(stack.start_web())
    return System(name, f"http://127.0.0.1:{stack.openai_port}", lambda: [*web, worker.pid, stack.redis.pid])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, action="append", default=[], help="only these numbers of streams")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--against", type=Path, help="another checkout of this system, to stand in for vllm serve")
    arguments = parser.parse_args()
    os.environ["OPENAI_API_KEY"] = KEY
    with tempfile.TemporaryDirectory(prefix="cy-llm-compare-") as folder:
        stacks = [Stack(Path(folder) / "stack", {"demo": {"model_path": str(MODEL), **ENGINE}})]
        bare = None
        try:
            this = start_system("this system", stacks[0])
            if arguments.against is not None:
                stacks.append(Stack(Path(folder) / "other", stacks[0].models, root=arguments.against.resolve()))
                other = start_system("the other checkout", stacks[1])
            else:
                bare = server = BareVllm(Path(folder), "demo", MODEL, ENGINE)
                other = System("vllm serve", bare.base, lambda: [server.process.pid])
            systems = (other, this)
            print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
            print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
            rows = compare(*systems, arguments.rounds, tuple(arguments.streams) or CONCURRENCIES)
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
