"""``python -m bench.faults [--rounds N] [--streams N] [--row WORD]``: runs the matrix, prints a table."""

import argparse
import os
import platform
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bench.faults import training, usage
from testing.faults.client import Outcome
from testing.faults.kinds import FAULTS, Fault, Fleet
from testing.faults.rounds import MODELS, run_round
from testing.stack import Stack


@dataclass
class Tally:
    """One row of the table."""

    outcomes: list[tuple[Outcome, str]] = field(default_factory=list)

    def add(self, outcome: Outcome, expected: str) -> None:
        self.outcomes.append((outcome, expected))

    @property
    def whole(self) -> bool:
        return all(outcome.done and outcome.text == expected for outcome, expected in self.outcomes)

    def cells(self) -> list[str]:
        outcomes = [outcome for outcome, _ in self.outcomes]
        exact = sum(outcome.done and outcome.text == expected for outcome, expected in self.outcomes)
        return [
            str(len(outcomes)),
            str(sum(outcome.done for outcome in outcomes)),
            str(exact),
            str(sum(outcome.doubled for outcome in outcomes)),
            str(sum(outcome.lost for outcome in outcomes)),
            str(sum(outcome.resumed for outcome in outcomes)),
            f"{max(outcome.longest_pause for outcome in outcomes):.1f} s",
        ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--row", action="append", default=[], help="only rows whose name holds this word")
    arguments = parser.parse_args()
    rows = [row for row in FAULTS if not arguments.row or any(word in row.name for word in arguments.row)]

    with tempfile.TemporaryDirectory(prefix="cy-llm-faults-") as folder:
        stack = Stack(Path(folder), MODELS, env={"CY_LLM_WEB_THREADS": "128"})
        try:
            stack.start_web()
            fleet = Fleet(stack, ["--models", "demo"])
            fleet.fill()
            # What each client should get: the undisturbed run, twice, to see that it is stable.
            expected = [outcome.text for outcome in run_round(fleet, FAULTS[0], arguments.streams, random.Random(0))]
            return print_matrix(fleet, rows, arguments.rounds, expected)
        except AssertionError:
            for process in stack.processes:
                print(f"== {process.name} (status {process.popen.poll()})\n{process.tail()}", file=sys.stderr)
                for line in process.lines():
                    if line.get("level") in ("ERROR", "CRITICAL"):
                        print(line, file=sys.stderr)
            raise
        finally:
            stack.close()


def print_matrix(fleet: Fleet, rows: list[Fault], rounds: int, expected: list[str]) -> int:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}; {rounds} rounds of {len(expected)} streams, real vLLM, two workers\n")
    print("| fault | streams | completed | text exact | doubled | lost | resumed | longest pause |")
    print("|---|---|---|---|---|---|---|---|")
    rng = random.Random(1)
    whole = True
    for row in rows:
        tally = Tally()
        for _ in range(rounds):
            for outcome, text in zip(run_round(fleet, row, len(expected), rng), expected, strict=True):
                tally.add(outcome, text)
        print("| " + " | ".join([row.name, *tally.cells()]) + " |", flush=True)
        for outcome, text in tally.outcomes:
            if not outcome.done or outcome.text != text:
                print(f"<!-- {outcome.error or 'text differs'} -->", flush=True)
        whole = whole and tally.whole
    return 0 if whole else 1


if __name__ == "__main__":
    others = {"training": training.main, "usage": usage.main}
    sys.exit(others.get(" ".join(sys.argv[1:2]), main)())
