"""``/v1/batches``: what is taken, and what is refused."""

import json
import os
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

from store.principal import Scope
from store.sql import db
from store.sql.api_keys import ApiKeyStore
from store.sql.file_tables import Batch
from store.sql.tables import now
from testing.batches import create, finish, line, results, upload
from testing.fake_text import expected_text
from testing.stack import KEY, Stack
from testing.waiting import until
from tests.conftest import FAKE_MODELS


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Front door, worker, and who runs batches."""
    opened = Stack(tmp_path_factory.mktemp("batches") / "stack", FAKE_MODELS)
    try:
        opened.start_worker("w1", ["--models", "fake,slow,tiny"])
        opened.start_web()
        opened.spawn_background()
        yield opened
    finally:
        opened.close()


@pytest.fixture
def sdk(stack: Stack) -> Iterator[openai.OpenAI]:
    with stack.openai() as client:
        yield client


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
    for before in ("\ufeff", "\ufeff\r\n"):
        done = finish(sdk, create(sdk, before + GOOD + "\r\n\r\n" + line("b") + "\r\n").id)
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


def test_lines_of_fifty_thousand(tmp_path: Path) -> None:
    from webapp.openai.batches.lines import MAX_LINES, scan

    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(line(str(n)) for n in range(MAX_LINES)))
    found = scan(path, "/v1/chat/completions")
    assert (len(found.lines), found.faults, found.model) == (MAX_LINES, [], "fake")
    path.write_text(path.read_text() + "\n" + line("one more"))
    assert [fault.code for fault in scan(path, "/v1/chat/completions").faults] == ["too_many_tasks"]
