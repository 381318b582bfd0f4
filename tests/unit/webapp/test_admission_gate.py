"""Requests are taken in one after the other, and nobody waits for a turn for ever."""

import threading
import time

import pytest

from testing.waiting import until
from webapp.gunicorn import admission_gate as turns


def test_one_walks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 20.0)
    together = threading.Barrier(8)
    inside: list[int] = []
    most: list[int] = []

    @turns.serialized
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

    @turns.serialized
    def ask() -> None:
        turns.over()
        answered.append(answer.wait(5))

    first = threading.Thread(target=ask)
    first.start()
    turns.serialized(answer.set)()
    first.join(10)
    assert answered == [True]


def test_who_has_waited_long_enough_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.05)
    end = threading.Event()
    holder = threading.Thread(target=turns.serialized(lambda: end.wait(10)))
    holder.start()
    try:
        until(lambda: not turns._turns.acquire(blocking=False) or turns._turns.release(), 5, "the turn is taken")
        assert turns.serialized(lambda: "went on")() == "went on"
    finally:
        end.set()
        holder.join(5)
    assert turns.serialized(lambda: "again")() == "again"


def test_a_turn_ends_with_an_error_too() -> None:
    @turns.serialized
    def fail() -> None:
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            fail()
    assert turns._turns.acquire(blocking=False)
    turns._turns.release()
