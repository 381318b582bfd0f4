"""Usage on its way from the end of a request into SQL: nothing is lost, nothing counts twice."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from launcher.redis_server import RedisServer
from store.ending import delivered_usage, end_forgotten, end_request
from store.redis import keys
from store.redis.request_records import RequestRecord, RequestStore
from store.sql import db
from store.sql.usage import UsageQuery, UsageStore
from store.token_budget.settlement import NOTHING
from store.token_log import log as token_log
from store.token_log import outcomes
from store.token_log.publisher import Publisher
from store.usage_bill import NATIVE, RELEASED, Bill
from tasks.worker.background.usage_booker import UsageBooker
from testing.publishing import publish
from testing.waiting import until

RECORD = RequestRecord(
    id="gen-1",
    kind=RequestRecord.GENERATE,
    model="demo",
    owner="k1",
    deadline=9e9,
    payload={"prompt": "p", "adapter": "loud/2", "adapter_name": "loud@2", "tenant": "acme"},
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[UsageStore]:
    url = f"sqlite:///{tmp_path / 'usage.db'}"
    db.migrate(url)
    engine = db.connect(url)
    yield UsageStore(db.sessions(engine))
    engine.dispose()


def booked(store: UsageStore) -> dict[str, tuple[int, int]]:
    """Request -> tokens of its prompt and of its answer."""
    found = {}
    for number in range(1, 50):
        if record := store.record(f"gen-{number}"):
            found[record.id] = (record.prompt_tokens, record.completion_tokens)
    return found


def line(number: int, tokens: int = 5, **values: object) -> dict[str, str]:
    usage = {"prompt_tokens": 2, "completion_tokens": tokens}
    made = Bill.of(RECORD, "finished", usage, attempt=1).to_json()
    return {"b": json.dumps({**json.loads(made), "id": f"gen-{number}", **values})}


def test_the_script_that_closes_an_attempt_leaves_its_bill(
    redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    async def work(publisher: Publisher) -> None:
        for number, closing in enumerate(("release", "end", "nobody's"), 1):
            writer = publisher.writer(f"gen-{number}")
            if closing != "nobody's":
                writer.account = lambda kind, data, n=number: (
                    json.dumps({"n": n, "kind": kind, "tokens": data["tokens"]}),
                    NOTHING,
                )
            await writer.open({"worker": "w"})
            writer.text("word", (1, 2))
            if closing == "release":
                await writer.release({"tokens": 2})
            else:
                await writer.end({"tokens": 2})

    publish(redis_server.url, work)
    lines = [json.loads(fields[b"b"]) for _, fields in redis_client.xrange(keys.bills())]
    assert lines == [{"n": 1, "kind": "r", "tokens": 2}, {"n": 2, "kind": "e", "tokens": 2}]


def test_a_writer_that_was_superseded_bills_nothing(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    async def work(publisher: Publisher) -> None:
        old, new = publisher.writer("gen-1", 1), publisher.writer("gen-1", 2)
        for writer in (old, new):
            writer.account = lambda kind, data, w=writer: (json.dumps({"attempt": w.attempt}), NOTHING)
        await old.open({"worker": "a"})
        await new.open({"worker": "b"})
        with pytest.raises(Exception, match="taken over"):
            await old.end({})
        await new.end({})

    publish(redis_server.url, work)
    assert [json.loads(fields[b"b"]) for _, fields in redis_client.xrange(keys.bills())] == [{"attempt": 2}]


def test_an_end_from_outside_counts_what_was_delivered(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    async def work(publisher: Publisher) -> None:
        native, relayed = publisher.writer("gen-1"), publisher.writer("gen-2")
        for writer in (native, relayed):
            await writer.open({"worker": "w"})
        native.text("one", (5, 6))
        native.text("two", (7,))
        # Two choices, an end among them: five tokens.
        relayed.body(b"data: {}\n\n", "+5,6,-3,@1,+7,@0,+8,9,-1")
        while not (native.settled and relayed.settled):
            await asyncio.sleep(0.001)

    publish(redis_server.url, work)
    for number, tokens in ((1, 3), (2, 5)):
        record = replace(RECORD, id=f"gen-{number}")
        assert delivered_usage(redis_client, record) == {
            "prompt_tokens": 0,
            "completion_tokens": tokens,
            "total_tokens": tokens,
        }
        data = outcomes.cancelled(delivered_usage(redis_client, record))
        assert end_request(redis_client, record, 60, data)
        assert not end_request(redis_client, record, 60, data)
    bills = [Bill.from_json(fields[b"b"]) for _, fields in redis_client.xrange(keys.bills())]
    assert [(bill.id, bill.completion_tokens, bill.outcome, bill.final) for bill in bills] == [
        ("gen-1", 3, "cancelled", True),
        ("gen-2", 5, "cancelled", True),
    ]
    assert (bills[0].tenant, bills[0].key, bills[0].adapter, bills[0].endpoint) == ("acme", "k1", "loud@2", NATIVE)


def test_bills_are_booked_and_leave_the_outbox(redis_client: redis.Redis, store: UsageStore) -> None:
    booker = UsageBooker(redis_client, store, "one")
    for number in range(1, 8):
        redis_client.xadd(keys.bills(), line(number))
    redis_client.xadd(keys.bills(), line(3, 9))
    assert booker.book_once(wait_ms=1) == 8
    assert booked(store) == {f"gen-{number}": (2, 5) for number in range(1, 8)}
    assert redis_client.xlen(keys.bills()) == 0
    assert booker.book_once(wait_ms=1) == 0


def test_what_one_read_and_did_not_book_another_books(redis_client: redis.Redis, store: UsageStore) -> None:
    class Dying(UsageStore):
        def book(self, bills: object) -> None:
            raise KeyboardInterrupt

    redis_client.xadd(keys.bills(), line(1))
    dying = UsageBooker(redis_client, Dying(None), "dying")  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        dying.book_once(wait_ms=1)
    other = UsageBooker(redis_client, store, "other", abandoned_ms=0)
    assert other.book_once(wait_ms=1) == 1
    assert booked(store) == {"gen-1": (2, 5)}
    assert redis_client.xlen(keys.bills()) == 0


def test_one_that_died_between_booking_and_telling_counts_once(redis_client: redis.Redis, store: UsageStore) -> None:
    redis_client.xadd(keys.bills(), line(1))
    first = UsageBooker(redis_client, store, "first")
    [(_, fields)] = first._new(1)
    store.book([Bill.from_json(fields[b"b"])])
    other = UsageBooker(redis_client, store, "other", abandoned_ms=0)
    assert other.book_once(wait_ms=1) == 1
    assert store.rows(UsageQuery())[0].requests == 1


def test_a_database_that_is_away_loses_nothing(
    redis_client: redis.Redis, store: UsageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.worker.background.usage_booker._PAUSE_SECONDS", 0.01)
    away = {"is": True}

    class Flaky(UsageStore):
        def book(self, bills: list[Bill]) -> None:  # type: ignore[override]
            if away["is"]:
                raise OperationalError("insert", {}, Exception("locked"))
            store.book(bills)

    booker = UsageBooker(redis_client, Flaky(None), "b", abandoned_ms=0)  # type: ignore[arg-type]
    booker.start()
    try:
        for number in range(1, 4):
            redis_client.xadd(keys.bills(), line(number))
        until(lambda: booker._failing, 10, "it has tried")
        away["is"] = False
        until(lambda: len(booked(store)) == 3, 10, "all are booked")
    finally:
        booker.stop()
    assert redis_client.xlen(keys.bills()) == 0


def test_a_redis_that_was_emptied_and_a_line_that_is_none(redis_client: redis.Redis, store: UsageStore) -> None:
    booker = UsageBooker(redis_client, store, "b")
    assert booker.book_once(wait_ms=1) == 0
    redis_client.flushdb()
    redis_client.xadd(keys.bills(), {"b": "not JSON"})
    redis_client.xadd(keys.bills(), {"x": "no bill"})
    redis_client.xadd(keys.bills(), line(1, of_a_newer_version=True))
    assert booker.book_once(wait_ms=1) == 1
    assert booked(store) == {"gen-1": (2, 5)}
    assert redis_client.xlen(keys.bills()) == 0


def test_a_bill_of_a_request() -> None:
    released = Bill.of(RECORD, RELEASED, None, attempt=2, final=False)
    assert (released.prompt_tokens, released.completion_tokens, released.final) == (0, 0, False)
    assert Bill.from_json(released.to_json()) == released


def test_both_databases_take_them(sessions: sessionmaker[Session], redis_client: redis.Redis) -> None:
    store = UsageStore(sessions)
    booker = UsageBooker(redis_client, store, "b")
    for number in range(1, 4):
        redis_client.xadd(keys.bills(), line(number))
        redis_client.xadd(keys.bills(), line(number, 7))
    assert booker.book_once(wait_ms=1) == 6
    assert booked(store) == {f"gen-{number}": (2, 5) for number in range(1, 4)}


def test_a_bill_that_no_database_takes_holds_up_no_other(
    sessions: sessionmaker[Session], redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    store = UsageStore(sessions)
    booker = UsageBooker(redis_client, store, "b")
    redis_client.xadd(keys.bills(), line(1))
    redis_client.xadd(keys.bills(), line(2, completion_tokens=None))
    redis_client.xadd(keys.bills(), line(4, ended="yesterday"))
    redis_client.xadd(keys.bills(), line(3, adapter="a" * 1000, model="m" * 1000, endpoint="/" * 100))
    booker.book_once(wait_ms=1)
    assert booked(store) == {"gen-1": (2, 5), "gen-3": (2, 5)}
    assert redis_client.xlen(keys.bills()) == 0
    assert "A bill cannot be booked: IntegrityError" in caplog.text


def test_what_one_that_let_go_has_said_of_the_prompt_stays(
    redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    async def work(publisher: Publisher) -> None:
        first, second = publisher.writer("gen-1"), publisher.writer("gen-1", 2)
        await first.open({"worker": "a"})
        first.text("one", (5, 6))
        await first.release({"reason": "drain", "usage": {"prompt_tokens": 9, "completion_tokens": 2}})
        # The next one is killed.
        await second.open({"worker": "b"})
        second.text("two", (7,))
        while not second.settled:
            await asyncio.sleep(0.001)

    publish(redis_server.url, work)
    assert delivered_usage(redis_client, RECORD) == {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
    }


def test_requests_that_nobody_ends_are_ended_and_billed(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    """Their worker was killed, or let go for a client that never came back; nobody follows them."""

    async def work(publisher: Publisher) -> None:
        killed, left, ended, young, line = (publisher.writer(f"gen-{n}") for n in range(1, 6))
        for writer in (killed, left, ended, young, line):
            await writer.open({"worker": "w"})
            writer.text("some", (1, 2, 3))
        await left.release({"reason": "client_gone", "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
        await ended.end(outcomes.cancelled(None))
        await line.release({"reason": "preempted", "usage": None})
        while not (killed.settled and young.settled):
            await asyncio.sleep(0.001)

    publish(redis_server.url, work)
    requests, now = RequestStore(redis_client, 600), time.time()
    for number, late, background in ((1, 100, False), (2, 100, False), (3, 100, False), (4, 10, False), (5, 100, True)):
        payload = {"tenant": "acme", "background": background}
        record = RequestRecord(f"gen-{number}", RequestRecord.GENERATE, "demo", "k", now - late, payload)
        requests.save(record)
    assert end_forgotten(redis_client, 600, 60) == 2
    assert end_forgotten(redis_client, 600, 60) == 0
    lines = [json.loads(fields[b"b"]) for _, fields in redis_client.xrange(keys.bills())]
    assert {(line["id"], line["outcome"], line["prompt_tokens"], line["completion_tokens"]) for line in lines} == {
        ("gen-1", "error", 0, 3),
        ("gen-2", "cancelled", 7, 3),
    }
    assert [line["final"] for line in lines] == [True, True]
    last = token_log.last(redis_client, "gen-5")
    assert last is not None and not last.terminal
