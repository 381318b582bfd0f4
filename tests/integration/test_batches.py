"""``/v1/batches``: what is taken, what is refused, and that no line is lost or doubled whatever dies."""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch as BatchShape
from sqlalchemy import update

from store.sql import db
from store.sql.api_keys import ApiKeyStore, Scope
from store.sql.batches import BatchStore
from store.sql.file_tables import Batch
from store.sql.tables import now
from testing.fake_text import expected_text
from testing.stack import KEY, Process, Stack
from testing.waiting import until
from tests.conftest import FAKE_MODELS
from webapp.openai.batches.runner import Point

ENDED = ("completed", "failed", "expired", "cancelled")


def line(custom_id: Any, prompt: str = "go on", url: str = "/v1/chat/completions", **more: Any) -> str:
    body = {"model": "fake", "max_tokens": 3, "messages": [{"role": "user", "content": prompt}], **more}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}, ensure_ascii=False)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Front door, worker, and who runs batches."""
    opened = Stack(tmp_path_factory.mktemp("batches") / "stack", FAKE_MODELS)
    try:
        opened.start_worker("w1", ["--models", "fake,slow,tiny"])
        opened.start_web()
        start_background(opened)
        yield opened
    finally:
        opened.close()


def start_background(stack: Stack, name: str = "work") -> Process:
    return stack.spawn_background(name)


@pytest.fixture
def sdk(stack: Stack) -> Iterator[openai.OpenAI]:
    with stack.openai() as client:
        yield client


def upload(sdk: openai.OpenAI, text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return sdk.files.create(file=("in.jsonl", data), purpose="batch").id


def create(sdk: openai.OpenAI, text: str | bytes, endpoint: Any = "/v1/chat/completions", **more: Any) -> BatchShape:
    return sdk.batches.create(input_file_id=upload(sdk, text), endpoint=endpoint, completion_window="24h", **more)


def finish(sdk: openai.OpenAI, batch_id: str, seconds: float = 60) -> BatchShape:
    found = until(lambda: (batch := sdk.batches.retrieve(batch_id)).status in ENDED and batch, seconds, "it ends")
    assert isinstance(found, BatchShape)
    return found


def results(sdk: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    text = sdk.files.content(file_id).text
    assert text.endswith("\n")
    return [json.loads(each) for each in text.splitlines()]


def test_a_batch_with_good_and_bad_lines(stack: Stack, sdk: openai.OpenAI) -> None:
    lines = [line(f"r{n}", f"prompt {n}") for n in range(20)]
    lines[4] = line("bad value", temperature=9)
    lines[7] = line("no model", model="nope")
    lines[9] = line("too long", "word " * 100, model="tiny")
    made = create(sdk, "\n".join(lines), metadata={"k": "v"})
    assert made.id.startswith("batch_") and made.object == "batch" and made.status == "validating"
    assert (made.metadata, made.completion_window, made.errors) == ({"k": "v"}, "24h", None)
    done = finish(sdk, made.id)
    assert done.status == "completed"
    counts = done.request_counts
    assert counts and (counts.total, counts.completed, counts.failed) == (20, 17, 3)
    for moment in (done.in_progress_at, done.finalizing_at, done.completed_at):
        assert moment is not None and made.created_at <= moment
    assert done.usage and done.usage.output_tokens == 17 * 3 and done.usage.total_tokens == done.usage.input_tokens + 51
    answers = {each["custom_id"]: each for each in results(sdk, done.output_file_id)}
    assert len(answers) == 17
    for custom_id, answer in answers.items():
        number = int(custom_id.removeprefix("r"))
        assert answer["error"] is None and answer["id"].startswith("batch_req_")
        response = answer["response"]
        assert response["status_code"] == 200 and response["request_id"]
        assert response["body"]["choices"][0]["message"]["content"] == expected_text(f"prompt {number}", 3)
    errors = {each["custom_id"]: each for each in results(sdk, done.error_file_id)}
    assert {name: each["response"]["status_code"] for name, each in errors.items()} == {
        "bad value": 400,
        "no model": 404,
        "too long": 400,
    }
    assert errors["bad value"]["response"]["body"]["error"]["param"] == "temperature"
    assert errors["no model"]["response"]["body"]["error"]["code"] == "model_not_found"
    file = sdk.files.retrieve(str(done.output_file_id))
    assert (file.purpose, file.filename) == ("batch_output", f"{made.id}_output.jsonl")
    headers = {"Authorization": f"Bearer {KEY}"}
    raw = httpx.get(f"{stack.openai_base}/batches/{made.id}", headers=headers, trust_env=False)
    BatchShape.model_validate_json(raw.content, strict=True)
    # Nothing is left but the files.
    assert not list((stack.folder / "files" / "batches").glob("*"))


def test_all_failed(sdk: openai.OpenAI) -> None:
    done = finish(sdk, create(sdk, "\n".join(line(f"r{n}", temperature=9) for n in range(3))).id)
    assert (done.status, done.output_file_id) == ("completed", None)
    assert done.request_counts and (done.request_counts.completed, done.request_counts.failed) == (0, 3)
    assert [each["error"] for each in results(sdk, done.error_file_id)] == [None] * 3


def test_completions(sdk: openai.OpenAI) -> None:
    body = {"model": "fake", "prompt": "go on", "max_tokens": 2}
    one = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body})
    done = finish(sdk, create(sdk, one, "/v1/completions").id)
    [answer] = results(sdk, done.output_file_id)
    assert answer["response"]["body"]["choices"][0]["text"] == expected_text("go on", 2)


GOOD = line("a", "é日本")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\n\n".join([GOOD, "", GOOD]), [("duplicate_custom_id", 5, "custom_id")]),
        (GOOD + "\n" + line("b", url="/v1/embeddings"), [("url_mismatch", 2, "url")]),
        (GOOD.replace("POST", "GET"), [("invalid_method", 1, "method")]),
        (GOOD + "\n{", [("invalid_json_line", 2, None)]),
        ("[1]\n" + GOOD, [("invalid_json_line", 1, None)]),
        (line("a", stream=True), [("invalid_request", 1, "body.stream")]),
        ("", None),
        (" \n \n", [("empty_file", None, None)]),
        (GOOD.encode("utf-16"), [("invalid_json_line", 1, None)]),
        ('{"method":"POST","url":"/v1/chat/completions","body":{}}', [("missing_required_parameter", 1, "custom_id")]),
        (line(7), [("invalid_custom_id", 1, "custom_id")]),
        (line("x" * 600), [("invalid_custom_id", 1, "custom_id")]),
        (GOOD.replace(GOOD[GOOD.index('"body"') :], '"body": []}'), [("invalid_request", 1, "body")]),
    ],
)
def test_files_with_faults(
    sdk: openai.OpenAI, text: str | bytes, wanted: list[tuple[str, int | None, str | None]] | None
) -> None:
    if wanted is None:
        with pytest.raises(openai.BadRequestError):
            create(sdk, text)
        return
    failed = finish(sdk, create(sdk, text).id)
    assert (failed.status, failed.output_file_id, failed.error_file_id) == ("failed", None, None)
    assert failed.failed_at is not None and failed.errors is not None and failed.errors.data is not None
    found = [(each.code, each.line, each.param) for each in failed.errors.data]
    assert found[: len(wanted)] == wanted
    assert all(each.message for each in failed.errors.data)


def deep(levels: int) -> str:
    return line("deep", metadata=json.loads('{"a":' * levels + "1" + "}" * levels))


@pytest.mark.parametrize("levels", [190, 300, 900])
def test_deep_lines_hold_nobody_up(sdk: openai.OpenAI, levels: int) -> None:
    made, other = create(sdk, deep(levels)), create(sdk, GOOD)
    assert finish(sdk, other.id).status == "completed"
    done = finish(sdk, made.id)
    if levels < 200:
        assert done.status == "completed"
    else:
        assert done.errors and done.errors.data and done.errors.data[0].code == "invalid_json_line"


def test_names_that_nobody_has(sdk: openai.OpenAI) -> None:
    names: list[Any] = ["ft:a\0b", "a\0b", 7, "", "x" * 300, ["fake"]]
    done = finish(sdk, create(sdk, "\n".join(line(f"r{n}", model=name) for n, name in enumerate(names))).id)
    counts = done.request_counts
    assert done.status == "completed" and counts and counts.completed + counts.failed == len(names)
    assert {each["response"]["status_code"] for each in results(sdk, done.error_file_id)} <= {400, 404}


def test_a_line_that_must_wait_holds_no_other_up(sdk: openai.OpenAI) -> None:
    # Nobody serves "idle".
    made = create(sdk, "\n".join([line("waits", model="idle"), *(line(f"r{n}") for n in range(5))]))

    def rest() -> bool:
        counts = sdk.batches.retrieve(made.id).request_counts
        return counts is not None and counts.completed == 5

    until(rest, 30, "the others are answered")
    sdk.batches.cancel(made.id)
    done = finish(sdk, made.id)
    assert [each["custom_id"] for each in results(sdk, done.error_file_id)] == ["waits"]


@pytest.mark.full
def test_a_line_may_be_as_large_as_a_body(own_stack: Stack) -> None:
    own_stack.start_worker("w1", ["--models", "fake"])
    own_stack.start_web(CY_LLM_MAX_BODY_BYTES="5000")
    with own_stack.openai() as sdk:
        made = create(sdk, "\n".join([line("large", "x" * 5000), line("small")]))
        process = own_stack.run("runner", [sys.executable, "-m", "webapp.openai.batches"], CY_LLM_MAX_BODY_BYTES="5000")
        assert process.wait(60) == 0
        done = sdk.batches.retrieve(made.id)
        [refused] = results(sdk, done.error_file_id)
        assert (refused["custom_id"], refused["response"]["status_code"]) == ("large", 413)


def test_files_as_people_save_them(sdk: openai.OpenAI) -> None:
    done = finish(sdk, create(sdk, "\ufeff" + GOOD + "\r\n\r\n" + line("b") + "\r\n").id)
    assert done.request_counts and done.request_counts.completed == 2


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"k": 1}}, "metadata"),
    ],
)
def test_what_is_refused(sdk: openai.OpenAI, values: dict[str, Any], param: str) -> None:
    body: Any = {"input_file_id": upload(sdk, GOOD), "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    with pytest.raises(openai.BadRequestError) as raised:
        sdk.batches.create(**{**body, **values})
    assert raised.value.param == param


def test_a_file_for_something_else_and_of_somebody_else(stack: Stack, sdk: openai.OpenAI) -> None:
    other = sdk.files.create(file=("in.jsonl", GOOD.encode()), purpose="fine-tune").id
    with pytest.raises(openai.BadRequestError, match="fine-tune") as raised:
        sdk.batches.create(input_file_id=other, endpoint="/v1/chat/completions", completion_window="24h")
    assert raised.value.param == "input_file_id"
    made = create(sdk, GOOD)
    with db.connect(stack.database_url).connect() as connection:
        key = ApiKeyStore(db.sessions(connection.engine)).add(os.urandom(4).hex(), [Scope.OPENAI], tenant="elsewhere")
    with stack.openai(key) as stranger:
        for call in (stranger.batches.retrieve, stranger.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                call(made.id)
        assert list(stranger.batches.list()) == []
        theirs = finish(stranger, create(stranger, GOOD).id)
        assert theirs.status == "completed"
        assert results(stranger, theirs.output_file_id)
    finish(sdk, made.id)


def test_pages(sdk: openai.OpenAI) -> None:
    made = [create(sdk, GOOD).id for _ in range(3)]
    found = [batch.id for batch in sdk.batches.list(limit=1)]
    assert found[:3] == made[::-1]
    first = sdk.batches.list(limit=2)
    assert first.has_more and [batch.id for batch in first.data] == made[:0:-1]
    for batch_id in made:
        finish(sdk, batch_id)


def test_cancelled_with_what_was_answered_kept(sdk: openai.OpenAI) -> None:
    # Each line takes seconds; more than may run at once.
    text = "\n".join(line(f"r{n}", model="slow", max_tokens=20 if n < 70 else 4000) for n in range(140))
    made = create(sdk, text)

    def some() -> bool:
        counts = sdk.batches.retrieve(made.id).request_counts
        return counts is not None and counts.completed >= 10

    until(some, 60, "some lines are answered")
    assert sdk.batches.cancel(made.id).status == "cancelling"
    done = finish(sdk, made.id)
    assert done.status == "cancelled" and done.cancelled_at is not None and done.cancelling_at is not None
    answers, errors = results(sdk, done.output_file_id), results(sdk, done.error_file_id)
    assert done.request_counts and len(answers) == done.request_counts.completed >= 10
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
    ids = Counter(each["custom_id"] for each in answers + errors)
    assert ids == Counter(f"r{n}" for n in range(140))
    with pytest.raises(openai.BadRequestError, match="cannot be cancelled"):
        sdk.batches.cancel(finish(sdk, create(sdk, GOOD).id).id)


def test_expired_with_what_was_answered_kept(stack: Stack, sdk: openai.OpenAI) -> None:
    text = "\n".join(line(f"r{n}", model="slow", max_tokens=10 if n < 30 else 4000) for n in range(60))
    made = create(sdk, text)

    def some() -> bool:
        counts = sdk.batches.retrieve(made.id).request_counts
        return counts is not None and counts.completed >= 5

    until(some, 60, "some lines are answered")
    with db.sessions(db.connect(stack.database_url)).begin() as session:
        session.execute(update(Batch).where(Batch.id == made.id).values(expires_at=now() - timedelta(seconds=1)))
    done = finish(sdk, made.id)
    assert done.status == "expired" and done.expired_at is not None
    answers, errors = results(sdk, done.output_file_id), results(sdk, done.error_file_id)
    assert {each["error"]["code"] for each in errors} == {"batch_expired"}
    assert Counter(each["custom_id"] for each in answers + errors) == Counter(f"r{n}" for n in range(60))


# What dies.


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
        first = start_background(bare, "first")
        made = create(sdk, "\n".join(line(f"r{n}", model="slow", max_tokens=60) for n in range(90)))
        until(lambda: sdk.batches.retrieve(made.id).status == "in_progress", 30, "it runs")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(10)
        start_background(bare, "second")
        done = finish(sdk, made.id, 120)
        assert done.status == "completed"
        assert Counter(each["custom_id"] for each in results(sdk, done.output_file_id)) == Counter(
            f"r{n}" for n in range(90)
        )


@pytest.mark.full
def test_the_inference_worker_is_killed_and_the_file_deleted(bare: Stack) -> None:
    with bare.openai() as sdk:
        start_background(bare)
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
        start_background(bare)
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
    """Twice a line is stopped for somebody who waits; the third time it runs beside."""
    question: Any = [{"role": "user", "content": "x"}]
    with bare.openai() as sdk:
        start_background(bare)
        made = create(sdk, "\n".join(line(f"r{n}", f"p{n}", model="slow", max_tokens=160) for n in range(5)))

        def lines() -> int:
            found = bare.find("w1")
            return found.background if found is not None else 0

        for visit in range(3):
            until(lambda: lines() == 5, 60, "all lines run")
            with sdk.chat.completions.create(model="slow", messages=question, max_tokens=40, stream=True) as stream:
                events = iter(stream)
                next(events)
                if visit < 2:
                    # With the very next step, not when somebody has noticed.
                    until(lambda: lines() == 0, 2, "the lines gave way")
                seen = [lines() for _ in events]
                assert set(seen[-10:]) == ({0} if visit < 2 else {5})
        done = finish(sdk, made.id, 120)
        answers = {each["custom_id"]: each["response"]["body"] for each in results(sdk, done.output_file_id)}
        assert sorted(answers) == [f"r{n}" for n in range(5)]
        for number in range(5):
            assert answers[f"r{number}"]["choices"][0]["message"]["content"] == expected_text(f"p{number}", 160)
        assert done.usage and done.usage.output_tokens == 5 * 160


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
        lost, other = create(sdk, GOOD), create(sdk, GOOD)
        shutil.rmtree(bare.folder / "files" / "batches" / lost.id)
        run_to_the_end(bare)
        failed = sdk.batches.retrieve(lost.id)
        assert failed.status == "failed" and failed.errors and failed.errors.data
        assert failed.errors.data[0].code == "server_error"
        assert sdk.batches.retrieve(other.id).status == "completed"


@pytest.mark.full
def test_a_worker_that_is_told_to_stop_leaves_its_batches(bare: Stack) -> None:
    with bare.openai() as sdk:
        first = start_background(bare, "first")
        made = create(sdk, "\n".join(line(f"r{n}", model="slow", max_tokens=100) for n in range(90)))
        until(lambda: (found := bare.find("w1")) and found.background > 10, 30, "lines run")
        first.signal(signal.SIGTERM)
        assert first.wait(20) == 0
        start_background(bare, "second")
        done = finish(sdk, made.id, 120)
        assert Counter(each["custom_id"] for each in results(sdk, done.output_file_id)) == Counter(
            f"r{n}" for n in range(90)
        )


@pytest.mark.full
def test_a_line_that_kills_workers_is_given_up(bare: Stack) -> None:
    with bare.openai() as sdk:
        start_background(bare)
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


def test_lines_of_fifty_thousand(tmp_path: Path) -> None:
    from webapp.openai.batches.lines import MAX_LINES, scan

    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(line(str(n)) for n in range(MAX_LINES)))
    found = scan(path, "/v1/chat/completions")
    assert (len(found.lines), found.faults, found.model) == (MAX_LINES, [], "fake")
    path.write_text(path.read_text() + "\n" + line("one more"))
    assert [fault.code for fault in scan(path, "/v1/chat/completions").faults] == ["too_many_tasks"]
