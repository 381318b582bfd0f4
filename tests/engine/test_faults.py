"""The short form of ``bench/faults``: four faults under streams of real vLLM, text exact."""

import random
from collections.abc import Iterator

import pytest

from testing.faults.client import Outcome
from testing.faults.kinds import EngineKilled, Fault, Fleet, RedisRestarted, Undisturbed, WebKilled, WorkerFrozen
from testing.faults.rounds import MODELS, run_round
from testing.stack import Stack

pytestmark = pytest.mark.full


STREAMS = 12


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    stack = Stack(tmp_path_factory.mktemp("faults"), MODELS, env={"CY_LLM_WEB_THREADS": "64"})
    try:
        stack.start_web()
        fleet = Fleet(stack, ["--models", "demo"])
        fleet.fill()
        yield fleet
    finally:
        stack.close()


@pytest.fixture(scope="module")
def expected(fleet: Fleet) -> list[str]:
    outcomes = play(fleet, Undisturbed())
    # In characters, not in chunks: a busy machine sends the same text in fewer of them.
    assert [(outcome.done, outcome.error) for outcome in outcomes] == [(True, "")] * STREAMS
    assert min(len(outcome.text) for outcome in outcomes) > 200
    return [outcome.text for outcome in outcomes]


def play(fleet: Fleet, row: Fault, restore: bool = True) -> list[Outcome]:
    return run_round(fleet, row, STREAMS, random.Random(7), restore)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "row", [WorkerFrozen(), RedisRestarted(), WebKilled(), EngineKilled()], ids=lambda row: row.name
)
def test_no_text_is_lost_or_doubled(fleet: Fleet, expected: list[str], row: Fault) -> None:
    # The last row leaves one worker, which is enough for the end of the module.
    outcomes = play(fleet, row, restore=not isinstance(row, EngineKilled))
    assert [outcome.error for outcome in outcomes] == [""] * STREAMS
    assert [outcome.text for outcome in outcomes] == expected
    assert not any(outcome.doubled or outcome.lost for outcome in outcomes)
