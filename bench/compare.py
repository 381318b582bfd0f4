"""``python -m bench.compare [--rounds 6]``: this system beside bare ``vllm serve``, in one run.

With ``--against DIR`` beside another checkout of this system instead: the commit that a change began with. With
``--entry FILE --id MODEL`` the model of an installation, with the engine arguments of its entry (``bin/cy-llm bench``).

Both serve the same model with the same engine arguments, and both run all the time (``--in-turn``: one after the
other, where the memory has room for one); vLLM's own ``bench serve`` drives them in turn, over the OpenAI chat API.
This system has everything on: keys, queue, token log, failover, usage. Prints medians, and the median of the paired
ratios with their spread. ``CPU`` is the CPU time of everything but the engine core: vLLM's API process there; front
door, Redis and the worker's own process here.

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
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engines.errors import ConfigError, EngineStartError, UnknownModel
from engines.model_entry import snake_keys
from engines.registry import load_registry
from settings import Settings
from testing.compare import picture
from testing.compare.client import drive
from testing.compare.legs import Legs
from testing.compare.systems import DEMO, Load, Subject, System, entry_subject, folder_subject
from testing.compare.table import HEAD, Pair, line, row
from testing.stack import KEY

#: Tokens in and out: the cost of a request, and the cost of a token.
SHAPES = ((64, 64), (128, 256))
STREAMS = (1, 16, 64, 256)
#: Of the other system's requests a second at 64 streams.
SHARES = (0.3, 0.6, 0.8)


def tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def wanted(arguments: argparse.Namespace, capacity: Callable[[], float]) -> Iterator[Load]:
    """Yield the loads that were asked for; ``capacity`` is asked only where one comes openly."""
    shapes = [shape for shape in SHAPES if not arguments.shape or f"{shape[0]}/{shape[1]}" in arguments.shape]
    every = not arguments.streams and not arguments.share
    for tokens_in, tokens_out in shapes:
        for streams in arguments.streams or (STREAMS if every else ()):
            yield Load(tokens_in, tokens_out, streams=streams, each=arguments.each)
    shares = arguments.share or (SHARES if every else ())
    if shares:
        most = capacity()
        tell(f"{most:.1f} requests/s of 64/64 at 64 streams: the other system's capacity")
        for share in shares:
            yield Load(64, 64, rate=share * most)


def subject_of(arguments: argparse.Namespace) -> Subject:
    """The model that was asked for. Raises ``SystemExit`` with words."""
    if arguments.entry is None:
        return folder_subject(arguments.model.resolve())
    try:
        settings = Settings.from_env_or_exit()
        registry = load_registry(arguments.entry, default=settings.default_model, models_root=settings.models_root)
        spec = registry.resolve(arguments.id) if arguments.id else registry.default
        return entry_subject(spec, snake_keys(spec.id, registry.entries[spec.id]))
    except (ConfigError, EngineStartError, UnknownModel, ValueError) as error:
        raise SystemExit(str(error)) from None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="an even number: half of them in each order of starting")
    parser.add_argument("--streams", type=int, action="append", default=[], help="only these numbers of streams")
    parser.add_argument("--share", type=float, action="append", default=[], help="only these shares of the capacity")
    parser.add_argument("--shape", action="append", default=[], help="of closed loads only these, as 64/64")
    parser.add_argument("--each", type=int, default=6, help="requests of each stream: 3 for a slow model")
    parser.add_argument("--model", type=Path, default=DEMO, help="another model's folder")
    parser.add_argument("--entry", type=Path, help="a model file, to take a model with its engine arguments from")
    parser.add_argument("--id", help="which of its models; without it the default")
    parser.add_argument("--in-turn", action="store_true", help="one after the other: the memory has room for one")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--picture", type=Path, help="also draw them there (SVG)")
    parser.add_argument("--against", type=Path, help="another checkout of this system, to stand in for vllm serve")
    arguments = parser.parse_args()
    if arguments.rounds < 2 or arguments.rounds % 2:
        parser.error("--rounds must be an even number")
    os.environ["OPENAI_API_KEY"] = KEY
    subject = subject_of(arguments)

    def measure(system: System, load: Load, seed: int) -> dict[str, float]:
        # Prompts that no measurement has: none shall find its own computed already.
        drive(system, load.warming, subject, 1000 + seed)
        return drive(system, load, subject, seed)

    against = arguments.against and arguments.against.resolve()
    legs = Legs(subject, against, measure, lambda capacity: wanted(arguments, capacity), tell)
    for half in (0, 1):
        rounds = range(half * arguments.rounds // 2, (half + 1) * arguments.rounds // 2)
        (legs.in_turn if arguments.in_turn else legs.together)(rounds, other_first=half == 0)
    results = legs.results
    pairs: dict[Load, list[Pair]] = {load: list(zip(*sides, strict=True)) for load, sides in results.items()}
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, model {subject.id}")
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    rows: list[dict[str, Any]] = [row(load, measured) for load, measured in pairs.items()]
    for each in rows:
        print(line(each))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows))
    if arguments.picture:
        other = "the other checkout" if arguments.against else "vllm serve"
        arguments.picture.write_text(picture.draw(rows, (other, "this system"), subject.id), encoding="utf-8")
        print(f"\nThe picture is in {arguments.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
