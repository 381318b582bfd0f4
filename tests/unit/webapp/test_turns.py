"""Requests are taken in one after the other, and nobody waits for a turn for ever."""

import threading

import pytest

from tests.waiting import until
from webapp import turns


def test_one_walks_at_a_time_until_its_turn_is_over() -> None:
    entered: list[int] = []
    go_on, end = threading.Event(), threading.Event()

    @turns.in_turn
    def walk(number: int) -> None:
        entered.append(number)
        if number == 0:
            go_on.wait(10)
            turns.over()
            # Waiting for an answer, not in turn any more.
            end.wait(10)

    first = threading.Thread(target=walk, args=(0,))
    first.start()
    until(lambda: entered == [0], 5, "the first one walks")
    second = threading.Thread(target=walk, args=(1,))
    second.start()
    go_on.set()
    until(lambda: entered == [0, 1], 5, "the second one follows before the first has ended")
    assert first.is_alive()
    end.set()
    first.join(5)
    second.join(5)


def test_who_has_waited_long_enough_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.05)
    end = threading.Event()
    holder = threading.Thread(target=turns.in_turn(lambda: end.wait(10)))
    holder.start()
    try:
        until(lambda: not turns._turns.acquire(blocking=False) or turns._turns.release(), 5, "the turn is taken")
        assert turns.in_turn(lambda: "went on")() == "went on"
    finally:
        end.set()
        holder.join(5)
    assert turns.in_turn(lambda: "again")() == "again"


def test_a_turn_ends_with_an_error_too() -> None:
    @turns.in_turn
    def fail() -> None:
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            fail()
    assert turns._turns.acquire(blocking=False)
    turns._turns.release()
