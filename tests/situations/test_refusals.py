"""Situations in which a call is refused, or ends before it has begun, on a system that is well."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from store.principal import ALL_SCOPES, Scope
from store.quota import Quota
from store.redis import keys as redis_keys
from store.redis.presence import PresenceAnnouncer, State, WorkerInfo
from store.sql.api_keys import NewKey
from store.usage_bill import Bill
from tasks.broker import queues
from testing.faces import Answer, Call, NativeStream
from testing.waiting import until
from tests.situations.conftest import Stage, ids
from tests.situations.table import FACES, TABLE, DoesNotApply, Expected, FaceType

pytestmark = pytest.mark.full
faces = pytest.mark.parametrize("kind", FACES, ids=ids())


@pytest.fixture(scope="module")
def stage(make_stage: Callable[..., Stage]) -> Stage:
    stage = make_stage(CY_LLM_STREAMS_PER_KEY="2")
    stage.stack.start_worker("w1", ["--models", "fake,slow"])
    stage.stack.start_worker("w2", ["--models", "one", "-c", "1"])
    stage.start()
    return stage


def expected(situation: str, kind: FaceType) -> Expected:
    cell = TABLE[situation][kind]
    if isinstance(cell, DoesNotApply):
        pytest.skip(cell.reason)
    return cell


def check(answer: Answer, cell: Expected) -> None:
    assert answer.code == cell.code, answer
    if cell.retry_after is None or cell.in_stream:
        return
    assert answer.retry_after is not None, answer
    assert 0 < answer.retry_after <= cell.retry_after, answer


def ask(stage: Stage, kind: FaceType, situation: str, call: Call, key_name: str | None = None) -> Answer:
    """Ask, and look at the answer, its line in the log, and the leases."""
    cell, face = expected(situation, kind), stage.face(kind)
    with stage.one_line(face, cell.code, key_name):
        answer = face.ask(call)
    check(answer, cell)
    until(lambda: stage.leases() == 0, 10, "every lease is given back")
    return answer


@faces
def test_no_key(stage: Stage, kind: FaceType) -> None:
    ask(stage, kind, "no key", Call(key=None))


@faces
def test_wrong_key(stage: Stage, kind: FaceType) -> None:
    ask(stage, kind, "wrong key", Call(key="cy-wrong"))


@faces
def test_key_without_the_scope(stage: Stage, kind: FaceType) -> None:
    needed = Scope.TRAINING if "training" in kind.name else Scope.INFERENCE
    others = frozenset({Scope.TRAINING if needed is Scope.INFERENCE else Scope.INFERENCE})
    name = f"scope {kind.name}"
    ask(stage, kind, "key without the scope", Call(key=stage.add_key(name, others)), name)


@faces
def test_key_without_the_model(stage: Stage, kind: FaceType) -> None:
    name = f"models {kind.name}"
    ask(stage, kind, "key without the model", Call(key=stage.add_key(name, models=("another",))), name)


@faces
def test_over_the_tokens_a_minute(stage: Stage, kind: FaceType) -> None:
    name = f"tokens {kind.name}"
    row, key = stage.new_key(NewKey(name, ALL_SCOPES, tokens_per_minute=300))
    seconds, _ = stage.stack.client.time()
    used = {"minute": 300, "at": seconds * 1000, "rate": 300}
    stage.stack.client.hset(redis_keys.tokens(row.id), mapping=used)
    ask(stage, kind, "over the tokens a minute", Call(key=key), name)
    assert not stage.stack.client.exists(redis_keys.token_reserves(row.id))


@faces
def test_quota_spent(stage: Stage, kind: FaceType) -> None:
    name = f"quota {kind.name}"
    row, key = stage.new_key(NewKey(name, ALL_SCOPES, quota=Quota(1000, "day")))
    now = time.time()
    bill = Bill(f"gen-{name}"[:40], row.tenant, row.id, "fake", "", "/x", now, now, "finished", 1, True, 900, 0, 100)
    stage.book(bill)
    answer = ask(stage, kind, "quota spent", Call(key=key), name)
    assert "has used 1000" in answer.raw


@faces
def test_larger_than_the_token_limit(stage: Stage, kind: FaceType) -> None:
    name = f"large {kind.name}"
    call = Call(key=stage.add_key(name, tokens_per_minute=100), tokens=200)
    answer = ask(stage, kind, "larger than the token limit", call, name)
    assert "may use 100 tokens a minute" in answer.raw


@faces
def test_unknown_model(stage: Stage, kind: FaceType) -> None:
    ask(stage, kind, "unknown model", Call(key=stage.add_key(f"model {kind.name}"), model="nope"), f"model {kind.name}")


@faces
def test_unknown_adapter(stage: Stage, kind: FaceType) -> None:
    call = Call(key=stage.add_key(f"adapter {kind.name}"), adapter="nope")
    ask(stage, kind, "unknown adapter", call, f"adapter {kind.name}")


@faces
def test_no_worker(stage: Stage, kind: FaceType) -> None:
    ask(stage, kind, "no worker", Call(key=stage.add_key(f"idle {kind.name}"), model="idle"), f"idle {kind.name}")


@faces
def test_model_loading(stage: Stage, kind: FaceType) -> None:
    announcer = PresenceAnnouncer(stage.stack.client)
    info = WorkerInfo("late@test", "late@test:1", State.LOADING, ["gpu-infer.coming"], {"coming": {}})
    key = stage.add_key(f"loading {kind.name}")
    announcer.renew(info)
    try:
        ask(stage, kind, "model loading", Call(key=key, model="coming"), f"loading {kind.name}")
    finally:
        announcer.withdraw(info.instance_id)


@contextmanager
def held_by(stage: Stage, key: str, model: str, count: int) -> Iterator[list[Answer]]:
    """Streams of a key that run meanwhile; those that cannot run wait in the queue."""
    face = NativeStream(stage.stack)
    with ExitStack() as stack:
        running = []
        for number in range(count):
            call = Call(key=key, model=model, prompt=f"held {number}", tokens=2000)
            if number == 0 or model != "one":
                running.append(stack.enter_context(face.running(call)))
            else:
                running.append(face.begin(call))
                until(lambda: queues.pending(stage.stack.client, ["gpu-infer.one"]) == 1, 10, "one request waits")
        try:
            yield [one.answer for one in running]
        finally:
            for one in running:
                one.hang_up()


@pytest.fixture(scope="module")
def full_queue(stage: Stage) -> Iterator[None]:
    """The only place of a worker is taken, and the only place in its queue."""
    with held_by(stage, stage.add_key("crowd"), "one", 2):
        yield


@faces
def test_over_the_streams_per_key(stage: Stage, kind: FaceType) -> None:
    expected("over the streams per key", kind)
    name = f"streams {kind.name}"
    key = stage.add_key(name)
    face, cell = stage.face(kind), expected("over the streams per key", kind)
    with held_by(stage, key, "slow", 2), stage.one_line(face, cell.code, name):
        check(face.ask(Call(key=key, model="slow")), cell)
    until(lambda: stage.leases() == 0, 10, "every lease is given back")
    assert face.ask(Call(key=key)).code == ""


@faces
def test_over_the_streams_per_key_by_resuming(stage: Stage, kind: FaceType) -> None:
    cell = expected("over the streams per key, by resuming", kind)
    name = f"resumes {kind.name}"
    key = stage.add_key(name)
    face = stage.face(kind)
    with held_by(stage, key, "slow", 2) as held, stage.one_line(face, cell.code, name):
        until(lambda: held[0].last_event, 10, "there is something to resume from")
        resume = (held[0].request_id, held[0].last_event)
        check(face.ask(Call(key=key, model="slow", resume=resume)), cell)
    until(lambda: stage.leases() == 0, 10, "every lease is given back")


@faces
def test_the_same_idempotency_key_with_the_same_body(stage: Stage, kind: FaceType) -> None:
    situation = "the same idempotency key with the same body"
    name = f"again {kind.name}"
    call = Call(key=stage.add_key(name), prompt=name, idempotency_key="k-1")
    first = ask(stage, kind, situation, call, name)
    second = ask(stage, kind, situation, call, name)
    assert first.text
    assert (second.text, second.request_id) == (first.text, first.request_id)


@faces
def test_the_same_idempotency_key_with_another_body(stage: Stage, kind: FaceType) -> None:
    name = f"other {kind.name}"
    key = stage.add_key(name)
    assert stage.face(kind).ask(Call(key=key, prompt="one", idempotency_key="k-2")).code == ""
    situation = "the same idempotency key with another body"
    ask(stage, kind, situation, Call(key=key, prompt="two", idempotency_key="k-2"), name)


@faces
def test_key_revoked_while_a_stream_runs(stage: Stage, kind: FaceType) -> None:
    cell = expected("key revoked while a stream runs", kind)
    name = f"revoked {kind.name}"
    key, face = stage.add_key(name, ALL_SCOPES), stage.face(kind)
    training = "training" in kind.name
    call = Call(key=key, model="fake" if training else "slow", prompt=name, tokens=0 if training else 2000)
    with stage.one_line(face, cell.code, name), face.running(call) as running:
        with stage.keys() as keys:
            assert keys.revoke(name)
        # Five seconds, and what it takes to tell the client.
        answer = running.join(6)
    assert answer.code == cell.code, answer
    until(lambda: stage.leases() == 0, 10, "every lease is given back")
    until(lambda: not any(worker.in_flight for worker in stage.stack.fleet().living), 10, "nothing is generated")


@faces
def test_client_gone(stage: Stage, kind: FaceType) -> None:
    cell = expected("client gone", kind)
    name = f"gone {kind.name}"
    key, face = stage.add_key(name), stage.face(kind)
    training = "training" in kind.name
    call = Call(key=key, model="fake" if training else "slow", prompt=name, tokens=0 if training else 2000)
    with stage.one_line(face, cell.code, name), face.running(call) as running:
        if not training:
            until(lambda: any(worker.in_flight for worker in stage.stack.fleet().living), 10, "it is generated")
        running.hang_up()
    until(lambda: not any(worker.in_flight for worker in stage.stack.fleet().living), 15, "nothing is generated")
    until(lambda: stage.leases() == 0, 10, "every lease is given back")


@faces
def test_full_queue(stage: Stage, full_queue: None, kind: FaceType) -> None:
    cell, face = expected("full queue", kind), stage.face(kind)
    name = f"full {kind.name}"
    with stage.one_line(face, cell.code, name):
        check(face.ask(Call(key=stage.add_key(name), model="one")), cell)
