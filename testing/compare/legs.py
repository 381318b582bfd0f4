"""The order of measuring: who is started first, who is loaded first."""

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from testing.compare.systems import Load, Starter, Subject, System

#: What the other system manages of it is its capacity.
_CAPACITY = Load(64, 64, streams=64)
#: A measurement of it that took this long need not be made again. Seconds.
_LONG = 30.0

Measured = dict[str, float]


class Legs:
    """Each leg starts both systems anew and measures some rounds of all loads."""

    def __init__(
        self,
        subject: Subject,
        against: Path | None,
        measure: Callable[[System, Load, int], Measured],
        wanted: Callable[[Callable[[], float]], Iterable[Load]],
        tell: Callable[[str], None],
    ) -> None:
        """``wanted`` names the loads; it is given what tells the other system's capacity, in requests a second.

        ``tell`` is told what has been measured.
        """
        self._subject = subject
        self._against = against
        self._measure = measure
        self._wanted = wanted
        self._tell = tell
        #: Of each load what was measured of the other system, and of this one.
        self.results: dict[Load, tuple[list[Measured], list[Measured]]] = {}

    def together(self, rounds: range, other_first: bool) -> None:
        """Both are up; which is loaded first alternates, so that no drift favours one. The first leg or a later one."""
        with Starter(self._subject, self._against) as starter:
            sides = {side: (starter.other, starter.this)[side]() for side in ((0, 1) if other_first else (1, 0))}
            for load in self._loads(sides[0]):
                for number in rounds:
                    for side in (0, 1) if number % 2 else (1, 0):
                        self.results[load][side].append(self._measure(sides[side], load, 1 + number))
                self._tell(f"both: {load.shape}, {load.name}")

    def in_turn(self, rounds: range, other_first: bool) -> None:
        """One is up at a time. In the first leg the other one goes first: it tells the capacity."""
        for side in (0, 1) if other_first else (1, 0):
            with Starter(self._subject, self._against) as starter:
                system = (starter.other, starter.this)[side]()
                for load in self._loads(system):
                    self.results[load][side].extend(self._measure(system, load, 1 + number) for number in rounds)
                    self._tell(f"{system.name}: {load.shape}, {load.name}")

    def _loads(self, other: System) -> list[Load]:
        """The loads, which the first leg finds out."""

        def capacity() -> float:
            measured: list[float] = []
            for seed in (501, 502, 503):
                began = time.monotonic()
                measured.append(self._measure(other, _CAPACITY, seed)["requests_per_second"])
                if time.monotonic() - began > _LONG:
                    break
            return statistics.median(measured)

        if not self.results:
            self.results = {load: ([], []) for load in self._wanted(capacity)}
        return list(self.results)
