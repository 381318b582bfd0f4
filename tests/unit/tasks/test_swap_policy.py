"""Which model gives way to which."""

from dataclasses import replace

from tasks.worker.models.swap_policy import Occupant, Plan, make_room


def plan(share: float, *occupants: Occupant, now: float = 100.0, max_loaded: int = 0) -> Plan:
    return make_room(share, occupants, now, min_stay=10.0, max_loaded=max_loaded)


def test_nobody_gives_way_to_what_fits() -> None:
    assert plan(0.4, Occupant("a", 0.6)) == Plan()


def test_shares_written_to_add_up_to_the_whole_do() -> None:
    assert plan(0.1, *(Occupant(str(number), 0.1) for number in range(9))) == Plan()


def test_the_least_recently_used_gives_way() -> None:
    assert plan(0.5, Occupant("a", 0.5, used_at=50), Occupant("b", 0.5, used_at=40)).victims == ("b",)


def test_an_idle_one_before_one_that_answers() -> None:
    assert plan(0.5, Occupant("a", 0.5, used_at=10, running=1), Occupant("b", 0.5, used_at=90)).victims == ("b",)


def test_as_few_as_must_be() -> None:
    occupants = [Occupant("old", 0.1, used_at=1), Occupant("large", 0.6, used_at=2), Occupant("new", 0.3, used_at=3)]
    assert plan(0.6, *occupants).victims == ("large",)


def test_a_minimum_stay_is_waited_for() -> None:
    assert plan(0.5, Occupant("a", 0.7, ready_at=96)) == Plan(wait=6.0)


def test_who_took_long_to_load_stays_as_long() -> None:
    answered = Occupant("a", 0.7, ready_at=80, load_seconds=25, used_at=91)
    assert plan(0.5, answered) == Plan(wait=5.0)
    assert plan(0.5, replace(answered, used_at=80, running=1)) == Plan(wait=5.0)


def test_one_that_nobody_uses_stays_no_longer_than_the_least_time() -> None:
    assert plan(0.5, Occupant("a", 0.7, ready_at=89, load_seconds=70, used_at=89)).victims == ("a",)
    assert plan(0.5, Occupant("a", 0.7, ready_at=93, load_seconds=70, used_at=93)) == Plan(wait=3.0)


def test_one_that_has_stayed_its_time_gives_way_before_one_that_has_not() -> None:
    young, old = Occupant("young", 0.5, used_at=1, ready_at=99), Occupant("old", 0.5, used_at=90, ready_at=1)
    assert plan(0.5, young, old).victims == ("old",)


def test_a_sleeping_one_is_freed_first_and_at_once() -> None:
    sleeping = Occupant("sleeping", 0.05, ready_at=99, used_at=99, asleep=True)
    assert plan(0.45, Occupant("a", 0.55, used_at=1), sleeping).victims == ("sleeping",)


def test_pinned_ones_never_give_way() -> None:
    pinned = Occupant("kept", 0.6, pinned=True)
    assert plan(0.4, pinned, Occupant("a", 0.3)).victims == ("a",)
    refused = plan(0.5, pinned, Occupant("a", 0.3)).refused
    assert refused == "it takes 50% of the memory; kept (60%) stays loaded (pinned)"


def test_a_number_of_models_may_be_the_bound() -> None:
    small = [Occupant("a", 0.1, used_at=2), Occupant("b", 0.1, used_at=1)]
    assert plan(0.1, *small, max_loaded=2).victims == ("b",)
    assert plan(0.1, *small, max_loaded=3) == Plan()
    # One that sleeps is not loaded.
    assert plan(0.1, Occupant("a", 0.1), Occupant("b", 0.1, asleep=True), max_loaded=2) == Plan()
    assert plan(0.1, Occupant("a", 0.1, pinned=True), max_loaded=1).refused


def test_what_would_sleep_must_leave_room_enough() -> None:
    assert plan(0.9, Occupant("a", 0.9, asleep_share=0.05)).sleepers == ("a",)
    assert plan(0.96, Occupant("a", 0.9, asleep_share=0.05)).sleepers == ()
    assert plan(0.9, Occupant("a", 0.9)).sleepers == ()
    two = [Occupant("a", 0.5, used_at=1, asleep_share=0.05), Occupant("b", 0.5, used_at=2, asleep_share=0.06)]
    assert plan(0.9, *two).sleepers == ("a",)
