"""``/v1/batches``: no line is lost or doubled whatever dies, and whose turn it is."""

import os
import shutil
import signal
import sys
from collections import Counter
from typing import Any

import pytest

from store.principal import Scope
from store.sql import db
from store.sql.api_keys import ApiKeyStore
from store.sql.batches import BatchStore
from testing.batches import create, finish, line, results
from testing.fake_text import expected_text
from testing.stack import Stack
from testing.waiting import until
from webapp.openai.batches.runner import Point


@pytest.fixture
def bare(own_stack: Stack) -> Stack:
    """Front door and worker; who runs batches is up to the test."""
    own_stack.start_worker("w1", ["--models", "fake,slow"])
    own_stack.start_web()
    return own_stack


def crash(stack: Stack, point: str, count: int = 1) -> None:
    """Let a runner die at a point."""
    process = stack.run("crash", [sys.executable, "-m", "testing.batch_crash", point, str(count)])
    assert process.wait(60) == -signal.SIGKILL, process.tail()


def run_to_the_end(stack: Stack) -> None:
    process = stack.run("runner", [sys.executable, "-m", "webapp.openai.batches"])
    assert process.wait(90) == 0, process.tail()


@pytest.mark.parametrize(
    ("point", "count"),
    [
        pytest.param(Point.VALIDATED, 1, marks=pytest.mark.full),
        ("answer", 60),
        pytest.param(Point.FINALIZING, 1, marks=pytest.mark.full),
        (Point.WRITTEN, 1),
        pytest.param(Point.ENDED, 1, marks=pytest.mark.full),
    ],
)
def test_no_line_is_lost_or_doubled(bare: Stack, point: str, count: int) -> None:
    wanted = [f"r{n}" for n in range(100)]
    with bare.openai() as sdk:
        made = create(sdk, "\n".join(line(each, each, temperature=9 if each == "r5" else 0) for each in wanted))
        crash(bare, point, count)
        before = sdk.batches.retrieve(made.id)
        # Twice in one batch.
        if point not in (Point.ENDED, Point.FINALIZING, Point.WRITTEN):
            crash(bare, Point.VALIDATED)
        run_to_the_end(bare)
        done = sdk.batches.retrieve(made.id)
        assert done.status == "completed"
        if before.in_progress_at is not None:
            assert done.in_progress_at == before.in_progress_at
        answers, errors = results(sdk, done.output_file_id), results(sdk, done.error_file_id)
        assert Counter(each["custom_id"] for each in answers + errors) == Counter(wanted)
        assert [each["custom_id"] for each in errors] == ["r5"]
        assert [each["custom_id"] for each in answers] == [each for each in wanted if each != "r5"]
        for each in answers:
            said = each["response"]["body"]["choices"][0]["message"]["content"]
            assert said == expected_text(each["custom_id"], 3)
        assert done.usage and done.usage.output_tokens == 99 * 3
        counts, earlier = done.request_counts, before.request_counts
        assert counts and (counts.total, counts.completed, counts.failed) == (100, 99, 1)
        assert earlier and earlier.completed <= 99
        # One output file and one error file, beside the input.
        assert len(list(sdk.files.list(purpose="batch_output"))) == 2  # type: ignore[arg-type]
        if point not in (Point.WRITTEN, Point.ENDED):
            assert len(list((bare.folder / "files" / "files").iterdir())) == 3


@pytest.mark.full
def test_a_crash_while_cancelling(bare: Stack) -> None:
    with bare.openai() as sdk:
        made = create(sdk, "\n".join(line(f"r{n}") for n in range(10)))
        crash(bare, Point.VALIDATED)
        sdk.batches.cancel(made.id)
        crash(bare, Point.FINALIZING)
        assert sdk.batches.retrieve(made.id).status == "cancelling"
        run_to_the_end(bare)
        done = sdk.batches.retrieve(made.id)
        assert (done.status, done.output_file_id) == ("cancelled", None)
        assert {each["custom_id"] for each in results(sdk, done.error_file_id)} == {f"r{n}" for n in range(10)}


@pytest.mark.full
def test_a_runner_that_was_thought_dead_changes_nothing(bare: Stack) -> None:
    with bare.openai() as sdk:
        made = create(sdk, "\n".join(line(f"r{n}", model="slow", max_tokens=40) for n in range(100)))
        old = bare.run("old", [sys.executable, "-m", "webapp.openai.batches"])

        def some() -> bool:
            batch = sdk.batches.retrieve(made.id)
            return bool(batch.request_counts and batch.request_counts.completed)

        until(some, 60, "lines are answered")
        old.signal(signal.SIGSTOP)
        new = bare.run("new", [sys.executable, "-m", "webapp.openai.batches"])
        batches = BatchStore(db.sessions(db.connect(bare.database_url)))
        until(lambda: (row := batches.load(made.id)) and row.fence == 2, 30, "another runner has it")
        old.signal(signal.SIGCONT)
        assert old.wait(60) == 0
        assert new.wait(90) == 0
        done = sdk.batches.retrieve(made.id)
        assert done.status == "completed"
        assert Counter(each["custom_id"] for each in results(sdk, done.output_file_id)) == Counter(
            f"r{n}" for n in range(100)
        )
        assert done.usage and done.usage.output_tokens == 100 * 40


@pytest.mark.full
def test_the_worker_that_runs_batches_is_killed(bare: Stack) -> None:
    with bare.openai() as sdk:
        first = bare.spawn_background("first")
        made = create(sdk, "\n".join(line(f"r{n}", model="slow", max_tokens=60) for n in range(90)))
        until(lambda: sdk.batches.retrieve(made.id).status == "in_progress", 30, "it runs")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(10)
        bare.spawn_background("second")
        done = finish(sdk, made.id, 120)
        assert done.status == "completed"
        assert Counter(each["custom_id"] for each in results(sdk, done.output_file_id)) == Counter(
            f"r{n}" for n in range(90)
        )


@pytest.mark.full
def test_the_inference_worker_is_killed_and_the_file_deleted(bare: Stack) -> None:
    with bare.openai() as sdk:
        bare.spawn_background()
        made = create(sdk, "\n".join(line(f"r{n}", model="slow", max_tokens=40) for n in range(80)))
        sdk.files.delete(made.input_file_id)
        worker = next(process for process in bare.processes if process.name == "w1")
        until(lambda: (found := bare.find("w1")) and found.background > 10, 30, "lines run")
        os.killpg(worker.pid, signal.SIGKILL)
        bare.start_worker("w2", ["--models", "fake,slow"])
        done = finish(sdk, made.id, 120)
        assert done.request_counts and (done.request_counts.completed, done.request_counts.failed) == (80, 0)


@pytest.mark.full
def test_people_come_first(bare: Stack) -> None:
    """While somebody is there no new line is begun."""
    with bare.openai() as sdk:
        bare.spawn_background()
        with sdk.chat.completions.create(
            model="slow", messages=[{"role": "user", "content": "x"}], max_tokens=200, stream=True
        ) as stream:
            events = iter(stream)
            next(events)
            until(lambda: (found := bare.find("w1")) and found.in_flight == 1, 10, "the worker says so")
            made = create(sdk, "\n".join(line(f"r{n}", model="slow") for n in range(10)))
            until(lambda: sdk.batches.retrieve(made.id).status == "in_progress", 30, "it is looked at")
            for _ in events:
                found = bare.find("w1")
                assert found is not None and found.background == 0
        assert finish(sdk, made.id).status == "completed"


@pytest.mark.full
def test_running_lines_give_way_and_come_to_their_end(bare: Stack) -> None:
    question: Any = [{"role": "user", "content": "x"}]
    with bare.openai() as sdk:
        bare.spawn_background()
        made = create(sdk, "\n".join(line(f"r{n}", f"p{n}", model="slow", max_tokens=160) for n in range(5)))

        def lines() -> int:
            found = bare.find("w1")
            return found.background if found is not None else 0

        for _ in range(3):
            until(lambda: lines() == 5, 60, "all lines run")
            with sdk.chat.completions.create(model="slow", messages=question, max_tokens=40, stream=True) as stream:
                events = iter(stream)
                next(events)
                # With the very next step, not when somebody has noticed.
                until(lambda: lines() == 0, 2, "the lines gave way")
                seen = [lines() for _ in events]
                assert set(seen[-10:]) == {0}
        done = finish(sdk, made.id, 120)
        answers = {each["custom_id"]: each["response"]["body"] for each in results(sdk, done.output_file_id)}
        assert sorted(answers) == [f"r{n}" for n in range(5)]
        for number in range(5):
            assert answers[f"r{number}"]["choices"][0]["message"]["content"] == expected_text(f"p{number}", 160)
        assert done.usage and done.usage.output_tokens == 5 * 160


@pytest.mark.full
def test_a_line_that_gave_way_ends_with_its_batch(bare: Stack) -> None:
    with bare.openai() as sdk:
        bare.spawn_background()
        made = create(sdk, "\n".join(line(f"r{n}", model="slow", max_tokens=900) for n in range(3)))
        until(lambda: (found := bare.find("w1")) and found.background == 3, 60, "all lines run")
        logs = bare.client.keys("cy:log:gen-*")
        assert len(logs) == 3
        with sdk.chat.completions.create(
            model="slow", messages=[{"role": "user", "content": "x"}], max_tokens=200, stream=True
        ) as stream:
            next(iter(stream))
            until(lambda: {last_kind(bare, log) for log in logs} == {b"r"}, 5, "they gave way")
            sdk.batches.cancel(made.id)
            assert finish(sdk, made.id).status == "cancelled"
        until(lambda: {last_kind(bare, log) for log in logs} == {b"e"}, 10, "nobody goes on with them")


def last_kind(stack: Stack, log: bytes) -> bytes:
    [(_, fields)] = stack.client.xrevrange(log, count=1)
    kind: bytes = fields[b"k"]
    return kind


@pytest.mark.full
def test_a_tenant_with_many_lines_leaves_room_for_others(own_stack: Stack) -> None:
    own_stack.start_worker("w1", ["--models", "slow"])
    own_stack.start_web()
    with db.connect(own_stack.database_url).connect() as connection:
        key = ApiKeyStore(db.sessions(connection.engine)).add("b", [Scope.OPENAI], tenant="b")
    with own_stack.openai() as many, own_stack.openai(key) as few:
        large = create(many, "\n".join(line(f"r{n}", model="slow", max_tokens=20) for n in range(60)))
        small = create(few, "\n".join(line(f"r{n}", model="slow", max_tokens=20) for n in range(5)))
        own_stack.run("runner", [sys.executable, "-m", "webapp.openai.batches"], CY_LLM_BATCH_LINES="2")
        finish(few, small.id, 90)
        counts = many.batches.retrieve(large.id).request_counts
        # By turns, two at a time.
        assert counts is not None and counts.completed < 20


def test_places_are_kept_for_people(own_stack: Stack) -> None:
    own_stack.start_worker("w1", ["--models", "fake,slow", "-c", "8"])
    own_stack.start_web()
    with own_stack.openai() as sdk:
        create(sdk, "\n".join(line(f"r{n}", model="slow", max_tokens=4000) for n in range(30)))
        own_stack.run("runner", [sys.executable, "-m", "webapp.openai.batches"])
        until(lambda: (found := own_stack.find("w1")) and found.background == 7, 30, "the lines run")
        question: Any = [{"role": "user", "content": "x"}]
        answer = sdk.chat.completions.create(model="fake", messages=question, max_tokens=2)
        assert answer.choices[0].message.content == expected_text("x", 2)


@pytest.mark.full
def test_a_file_that_is_gone_stops_its_batch_alone(bare: Stack) -> None:
    with bare.openai() as sdk:
        lost, other = create(sdk, line("a")), create(sdk, line("a"))
        shutil.rmtree(bare.folder / "files" / "batches" / lost.id)
        run_to_the_end(bare)
        failed = sdk.batches.retrieve(lost.id)
        assert failed.status == "failed" and failed.errors and failed.errors.data
        assert failed.errors.data[0].code == "server_error"
        assert sdk.batches.retrieve(other.id).status == "completed"


@pytest.mark.full
def test_a_worker_that_is_told_to_stop_leaves_its_batches(bare: Stack) -> None:
    with bare.openai() as sdk:
        first = bare.spawn_background("first")
        made = create(sdk, "\n".join(line(f"r{n}", model="slow", max_tokens=100) for n in range(90)))
        until(lambda: (found := bare.find("w1")) and found.background > 10, 30, "lines run")
        first.signal(signal.SIGTERM)
        assert first.wait(20) == 0
        bare.spawn_background("second")
        done = finish(sdk, made.id, 120)
        assert Counter(each["custom_id"] for each in results(sdk, done.output_file_id)) == Counter(
            f"r{n}" for n in range(90)
        )


@pytest.mark.full
def test_a_line_that_kills_workers_is_given_up(bare: Stack) -> None:
    with bare.openai() as sdk:
        bare.spawn_background()
        made = create(sdk, line("poison", model="slow", max_tokens=4000))
        for number in (1, 2):
            name = f"w{number}"
            until(lambda name=name: (found := bare.find(name)) and found.background, 60, "it runs")  # type: ignore[misc]
            worker = next(process for process in bare.processes if process.name == name)
            os.killpg(worker.pid, signal.SIGKILL)
            bare.start_worker(f"w{number + 1}", ["--models", "fake,slow"])
        done = finish(sdk, made.id, 60)
        [refused] = results(sdk, done.error_file_id)
        assert refused["response"]["status_code"] == 503
        assert "2 workers died" in refused["response"]["body"]["error"]["message"]


@pytest.mark.full
def test_cancelled_before_it_was_looked_at(bare: Stack) -> None:
    with bare.openai() as sdk:
        made = create(sdk, "{")
        sdk.batches.cancel(made.id)
        run_to_the_end(bare)
        assert sdk.batches.retrieve(made.id).status == "cancelled"


@pytest.mark.full
def test_a_key_that_was_revoked_asks_no_more(bare: Stack) -> None:
    with db.connect(bare.database_url).connect() as connection:
        keys = ApiKeyStore(db.sessions(connection.engine))
        key = keys.add("gone", [Scope.OPENAI])
        with bare.openai(key) as theirs:
            made = create(theirs, "\n".join(line(f"r{n}") for n in range(3)))
        keys.revoke("gone")
    run_to_the_end(bare)
    with bare.openai() as sdk:
        done = sdk.batches.retrieve(made.id)
        assert done.request_counts and (done.request_counts.completed, done.request_counts.failed) == (0, 3)
        statuses = {each["response"]["status_code"] for each in results(sdk, done.error_file_id)}
        assert statuses == {401}
