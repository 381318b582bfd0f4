"""Requests are taken in one after the other, and nobody waits for a turn for ever."""

import threading
import time

import pytest

from tests.waiting import until
from webapp import turns


def test_one_walks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 20.0)
    together = threading.Barrier(8)
    inside: list[int] = []
    most: list[int] = []

    @turns.in_turn
    def walk(number: int) -> None:
        inside.append(number)
        most.append(len(inside))
        time.sleep(0.01)
        inside.remove(number)

    def come(number: int) -> None:
        together.wait(10)
        walk(number)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == [1] * 8


def test_the_next_one_walks_while_the_first_waits_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 20.0)
    answer = threading.Event()
    answered: list[bool] = []

    @turns.in_turn
    def ask() -> None:
        turns.over()
        answered.append(answer.wait(5))

    first = threading.Thread(target=ask)
    first.start()
    turns.in_turn(answer.set)()
    first.join(10)
    assert answered == [True]


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
