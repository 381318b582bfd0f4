"""Which model gives way to which, on a worker that serves more of them than fit at once. Pure: no clock, no engines.

Models are served by turns: a model stays for a minimum time, so that two that are asked for in turn do not push each
other out with every request, and what waits longest comes next. Who has been used longest ago goes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

#: Rounding of shares that were written to add up to the whole.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Occupant:
    """A model that has memory. Times in seconds, of one clock."""

    model: str
    #: Of the memory: 0 to 1.
    share: float
    #: Never gives way.
    pinned: bool = False
    #: Answers that run on it.
    running: int = 0
    ready_at: float = 0.0
    #: How long its last loading took.
    load_seconds: float = 0.0
    #: When its last answer ended, or it became ready.
    used_at: float = 0.0
    #: It holds little and answers nothing: the first to be freed.
    asleep: bool = False
    #: What it would go on holding if it slept; None where it cannot.
    asleep_share: float | None = None


@dataclass(frozen=True)
class Plan:
    """What makes room: ``victims`` give way now, or there is nothing to do before ``wait`` seconds are over, or (with
    ``refused``, which tells why) it never will."""

    victims: tuple[str, ...] = ()
    #: Those of the victims that may sleep: what they go on holding leaves room enough.
    sleepers: tuple[str, ...] = ()
    wait: float = 0.0
    refused: str = ""


def make_room(share: float, occupants: Sequence[Occupant], now: float, min_stay: float, max_loaded: int = 0) -> Plan:
    """Return what must happen before a model that takes ``share`` of the memory can be loaded.

    ``min_stay``: seconds that a model stays at least; one that is being used, as long as its loading took, so that no
    more time is spent on loading than on answers. ``max_loaded``: models loaded at once; 0 is as many as fit.
    """
    pinned = [each for each in occupants if each.pinned]
    if not _fits(share, pinned, max_loaded):
        taken = ", ".join(f"{each.model} ({each.share:.0%})" for each in pinned)
        held = f"; {taken} stay{'s' if len(pinned) == 1 else ''} loaded (pinned)" if pinned else ""
        return Plan(refused=f"it takes {share:.0%} of the memory{held}")
    staying = list(occupants)
    victims: list[Occupant] = []

    def stays_for(each: Occupant) -> float:
        if each.asleep:
            return 0.0
        # Nobody gains by waiting for a model that nobody uses; loads can take minutes.
        used = each.running > 0 or (each.used_at > each.ready_at and now - each.used_at < min_stay)
        return max(0.0, each.ready_at + (max(min_stay, each.load_seconds) if used else min_stay) - now)

    def order(each: Occupant) -> tuple[bool, bool, bool, float]:
        return (not each.asleep, stays_for(each) > 0, each.running > 0, each.used_at)

    for candidate in sorted(occupants, key=order):
        if _fits(share, staying, max_loaded):
            break
        if not candidate.pinned:
            staying.remove(candidate)
            victims.append(candidate)
    # One that was taken early may have become needless with a larger one.
    for victim in list(victims):
        if _fits(share, [*staying, victim], max_loaded):
            staying.append(victim)
            victims.remove(victim)
    wait = max((stays_for(each) for each in victims), default=0.0)
    if wait > 0:
        return Plan(wait=wait)
    return Plan(tuple(each.model for each in victims), _sleepers(share, staying, victims))


def _sleepers(share: float, staying: Sequence[Occupant], victims: Sequence[Occupant]) -> tuple[str, ...]:
    taken, found = share + sum(each.share for each in staying), []
    for victim in victims:
        held = victim.asleep_share
        if victim.asleep or held is None or taken + held > 1 + _ROUNDING:
            continue
        taken += held
        found.append(victim.model)
    return tuple(found)


def _fits(share: float, others: Sequence[Occupant], max_loaded: int) -> bool:
    awake = sum(not each.asleep for each in others)
    return share + sum(each.share for each in others) <= 1 + _ROUNDING and not 0 < max_loaded < awake + 1
