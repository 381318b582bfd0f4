"""Whose turn it is among the lines of batches, and how often one is tried: without a system around them."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from store.files.batch_folder import BatchFolder
from store.redis.presence import Fleet, State, WorkerInfo
from store.sql import db
from store.sql.batches import BatchStatus, BatchStore, new_batch_id
from store.sql.leases import LeaseLostError
from testing.batches import line
from testing.waiting import until
from webapp.openai.batches import active, dispatcher, slots
from webapp.openai.batches.active import ActiveBatch
from webapp.openai.batches.answering import Answer
from webapp.openai.batches.dispatcher import LineDispatcher
from webapp.openai.batches.lines import Line
from webapp.openai.batches.slots import Slots


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BatchStore]:
    address = f"sqlite:///{tmp_path / 'test.db'}"
    db.migrate(address)
    engine = db.connect(address)
    yield BatchStore(db.sessions(engine))
    engine.dispose()


@pytest.fixture
def batch(tmp_path: Path, store: BatchStore) -> Iterator[ActiveBatch]:
    """One of three lines, which this process has claimed."""
    row = store.create(
        new_batch_id(),
        tenant="t",
        owner="o",
        endpoint="/v1/chat/completions",
        input_file_id="file-1",
        labels={},
        window=60,
        keep_seconds=None,
    )
    folder = BatchFolder(tmp_path, row.id)
    folder.input.parent.mkdir(parents=True)
    folder.input.write_text("\n".join(line(f"r{number}") for number in range(3)))
    found = ActiveBatch(row, 1, folder)
    found.validate()
    assert found.broken is None and found.total == 3
    yield found
    found.close()


def take(batch: ActiveBatch) -> Line | None:
    batch.waiting_for()
    return batch.take(lambda _: True)


def answer(passing: bool, status: int = 503) -> Answer:
    return Answer(status, "req", {"usage": {}}, passing)


def test_a_failure_of_the_systems_is_asked_three_times(batch: ActiveBatch, monkeypatch: Any) -> None:
    monkeypatch.setattr(active, "_WAIT", 0.0)
    first = take(batch)
    assert first is not None
    for _ in range(2):
        batch.take_answer(first, "r0", answer(passing=True))
        assert batch.counts()["failed"] == 0
        assert first in [take(batch) for _ in range(3)]
    batch.take_answer(first, "r0", answer(passing=True))
    assert batch.counts()["failed"] == 1


def test_a_line_that_gave_way_keeps_its_request_until_it_is_answered(batch: ActiveBatch) -> None:
    first = take(batch)
    assert first is not None and batch.stopped_request(first) is None
    batch.preempt(first, "gen-1")
    assert batch.stopped_request(first) == "gen-1" and batch.stopped_requests() == ["gen-1"]
    assert take(batch) == first
    # Nothing could be asked: its request is still there.
    batch.requeue(first)
    assert batch.stopped_request(first) == "gen-1"
    batch.take_answer(first, "r0", answer(passing=True))
    # The next try is another request.
    assert batch.stopped_request(first) is None and batch.stopped_requests() == []


def test_a_line_is_stopped_so_often_and_no_more(batch: ActiveBatch) -> None:
    first, second = take(batch), take(batch)
    assert first is not None and second is not None
    for _ in range(active._STOPS):
        assert batch.preemptible(first)
        batch.preempt(first, "gen-1")
    assert not batch.preemptible(first) and batch.preemptible(second)


def test_a_refusal_is_final(batch: ActiveBatch) -> None:
    first = take(batch)
    assert first is not None
    batch.take_answer(first, "r0", answer(passing=False, status=400))
    assert batch.counts()["failed"] == 1


def test_a_line_that_cannot_be_asked_now_is_asked_again(batch: ActiveBatch, monkeypatch: Any) -> None:
    monkeypatch.setattr(active, "_WAIT", 0.05)
    lines = [take(batch) for _ in range(3)]
    assert lines[0] is not None and take(batch) is None
    for _ in range(3):
        batch.requeue(lines[0])
        until(lambda: take(batch) == lines[0], 5, "it is asked again")


def test_what_was_answered_is_on_disk_before_it_is_shown(batch: ActiveBatch) -> None:
    first = take(batch)
    assert first is not None
    batch.take_answer(first, "r0", answer(passing=False, status=200))
    assert batch.sync() is not None
    assert [result.line for _, result in batch.folder.results(2)] == [1]


def test_results_are_in_the_order_of_the_file(batch: ActiveBatch) -> None:
    taken = [take(batch) for _ in range(3)]
    for number in (2, 0, 1):
        line_taken = taken[number]
        assert line_taken is not None
        batch.take_answer(line_taken, f"r{number}", answer(passing=False))
    batch.sync()
    assert [result.document["custom_id"] for result in batch.results()] == ["r0", "r1", "r2"]


def test_who_lost_a_batch_writes_nothing(store: BatchStore, batch: ActiveBatch) -> None:
    row = batch.row
    old = store.claim(row)
    newest = store.load(row.id)
    assert old is not None and newest is not None and store.claim(newest) == old + 1
    with pytest.raises(LeaseLostError):
        store.write(row.id, old, BatchStatus.VALIDATING, completed=7)
    with pytest.raises(LeaseLostError):
        store.finish(row.id, old, BatchStatus.COMPLETED)
    found = store.load(row.id)
    assert found is not None and (found.status, found.completed) == ("validating", 0)


def worker(interactive: int = 0, capacity: int = 16) -> Fleet:
    info = WorkerInfo("w", "w-1", State.READY, [], models={"m": {}}, interactive=interactive, capacity=capacity)
    return Fleet((info,))


def test_no_line_begins_while_somebody_waits() -> None:
    places = Slots(64)
    assert places.free(worker(), "m") == 14
    assert places.free(worker(interactive=1), "m") == 0
    # Nor right behind: who has an answer often asks on.
    assert places.free(worker(), "m") == 0


def test_lines_begin_again_when_it_is_quiet(monkeypatch: Any) -> None:
    monkeypatch.setattr(slots, "_QUIET", 0.1)
    places = Slots(64)
    places.note_interactive("m")
    assert places.free(worker(), "m") == 0
    until(lambda: places.free(worker(), "m") == 14, 5, "it is quiet")


def test_one_line_at_a_time_beside_people_who_are_always_there(monkeypatch: Any) -> None:
    monkeypatch.setattr(slots, "_PATIENCE", 0.1)
    places = Slots(64)
    assert places.free(worker(interactive=1), "m") == 0
    until(lambda: places.free(worker(interactive=1), "m") == 1, 5, "its time has come")
    places.take("m")
    assert places.free(worker(interactive=1), "m") == 0


@pytest.mark.parametrize(("people", "may_be_stopped"), [(1, False), (0, True)])
def test_a_line_that_is_asked_beside_people_is_not_stopped(
    batch: ActiveBatch, monkeypatch: Any, people: int, may_be_stopped: bool
) -> None:
    monkeypatch.setattr(slots, "_PATIENCE", 0.0)
    asked: list[bool] = []

    def ask(services: Any, row: Any, body: Any, given_up: Any, preemptible: bool, stopped: Any) -> Answer:
        asked.append(preemptible)
        return answer(passing=False, status=200)

    monkeypatch.setattr(dispatcher, "answer", ask)
    named = SimpleNamespace(spec=SimpleNamespace(id="m"))
    services: Any = SimpleNamespace(
        models=SimpleNamespace(fleet=lambda: worker(interactive=people), resolve_name=lambda owner, name: named),
        access=SimpleNamespace(owner=lambda owner, tenant: None),
        settings=SimpleNamespace(max_body_bytes=10_000),
    )
    batch.begun = True
    lines = LineDispatcher(services, lines_per_worker=64)
    lines.dispatch([batch])
    expected = 1 if people else 3
    until(lambda: batch.counts()["completed"] == expected, 5, "they are answered")
    assert asked == [may_be_stopped] * expected


def test_nobody_serves_it() -> None:
    assert Slots(64).free(Fleet(()), "m") == 0
