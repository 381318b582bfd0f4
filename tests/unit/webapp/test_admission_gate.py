"""Requests are admitted one after the other, and nobody waits for that for ever."""

import threading

import pytest

from testing.waiting import until
from webapp.gunicorn.admission_gate import AdmissionGate


def test_one_is_admitted_at_a_time() -> None:
    gate = AdmissionGate(max_wait=20.0)
    together = threading.Barrier(8)
    inside: list[int] = []
    most: list[int] = []
    others_wait = threading.Event()

    @gate.serialized
    def admit(number: int) -> None:
        inside.append(number)
        most.append(len(inside))
        # Long enough for a second one to come in, if it could.
        others_wait.wait(0.01)
        inside.remove(number)

    def come(number: int) -> None:
        together.wait(10)
        admit(number)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == [1] * 8


def test_the_next_one_is_admitted_while_the_first_waits_for_its_answer() -> None:
    gate = AdmissionGate(max_wait=20.0)
    answer = threading.Event()
    answered: list[bool] = []

    @gate.serialized
    def ask() -> None:
        gate.release()
        answered.append(answer.wait(5))

    first = threading.Thread(target=ask)
    first.start()
    gate.serialized(answer.set)()
    first.join(10)
    assert answered == [True]


def test_whoever_has_waited_long_enough_goes_on() -> None:
    gate = AdmissionGate(max_wait=0.05)
    inside, end = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        end.wait(10)

    holder = threading.Thread(target=gate.serialized(hold))
    holder.start()
    try:
        assert inside.wait(5)
        assert gate.serialized(lambda: gate.held)() is False
    finally:
        end.set()
        holder.join(5)
    assert gate.serialized(lambda: gate.held)() is True


def test_an_error_lets_the_next_one_through() -> None:
    gate = AdmissionGate(max_wait=0.05)

    @gate.serialized
    def fail() -> None:
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            fail()
    until(lambda: gate.serialized(lambda: gate.held)(), 5, "the gate is free")
