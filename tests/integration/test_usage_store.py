"""Usage in SQL, on both databases: each request once, whatever is told twice, late or out of order."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy.orm import Session, sessionmaker

from store.sql.usage import UsageQuery, UsageRow, UsageStore, slot_of
from store.usage_bill import RELEASED, Bill

NOON = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


def bill(number: int = 1, **values: object) -> Bill:
    made = Bill(
        id=f"gen-{number}",
        tenant="acme",
        key="k1",
        model="demo",
        adapter="",
        endpoint="/v1/chat/completions",
        created=NOON.timestamp() - 3,
        ended=NOON.timestamp(),
        outcome="finished",
        attempt=1,
        final=True,
        prompt_tokens=10,
        cached_tokens=4,
        completion_tokens=20,
        ttft_ms=50,
    )
    return replace(made, **values)  # type: ignore[arg-type]


def total(store: UsageStore, **query: object) -> tuple[int, int, int, int]:
    [row] = store.rows(UsageQuery(**query)) or [UsageRow({})]  # type: ignore[arg-type]
    return row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens


def test_what_is_told_twice_counts_once(sessions: sessionmaker[Session]) -> None:
    store = UsageStore(sessions)
    assert store.rows(UsageQuery()) == []
    store.book([])
    store.book([bill(), bill()])
    store.book([bill()])
    assert total(store) == (1, 10, 4, 20)


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "in one go"])
def test_a_later_bill_stands_for_the_request(sessions: sessionmaker[Session], together: bool) -> None:
    store = UsageStore(sessions)
    released = bill(outcome=RELEASED, final=False, completion_tokens=7)
    # A front door that ends it knows less: what was made stays made.
    ended = bill(outcome="error", attempt=0, prompt_tokens=0, cached_tokens=0, completion_tokens=9, ttft_ms=None)
    late = bill(outcome=RELEASED, final=False, attempt=1, completion_tokens=8)
    if together:
        store.book([released, ended, late])
    else:
        for each in (released, ended, late):
            store.book([each])
    assert total(store) == (1, 10, 4, 9)
    record = store.record("gen-1")
    assert record is not None
    assert (record.outcome, record.final, record.attempts, record.ttft_ms) == ("error", True, 1, 50)


def test_an_older_attempt_comes_too_late(sessions: sessionmaker[Session]) -> None:
    store = UsageStore(sessions)
    store.book([bill(attempt=2, final=False, outcome=RELEASED, completion_tokens=30)])
    store.book([bill(attempt=1, final=False, outcome="cancelled", completion_tokens=10, ended=NOON.timestamp() - 9)])
    assert total(store) == (1, 10, 4, 30)
    record = store.record("gen-1")
    assert record is not None
    assert (record.outcome, record.ended_at) == (RELEASED, NOON)
    store.book([bill(attempt=3, completion_tokens=40)])
    assert total(store) == (1, 10, 4, 40)


def test_a_batch_of_bills_is_booked_whole_or_not_at_all(sessions: sessionmaker[Session]) -> None:
    store = UsageStore(sessions)
    with pytest.raises(Exception, match=r"(?i)null|constraint"):
        store.book([bill(1), bill(2, completion_tokens=None)])
    assert store.rows(UsageQuery()) == []


def test_rows_by_what_is_asked(sessions: sessionmaker[Session]) -> None:
    store = UsageStore(sessions)
    store.book(
        [
            bill(1),
            bill(2, key="k2"),
            bill(3, key="k2", model="other"),
            bill(4, tenant="elsewhere", key="k3", adapter="loud@2"),
        ]
    )
    by_key = store.rows(UsageQuery(group=("tenant", "key")))
    assert [(row.of, row.requests) for row in by_key] == [
        ({"tenant": "acme", "key": "k1"}, 1),
        ({"tenant": "acme", "key": "k2"}, 2),
        ({"tenant": "elsewhere", "key": "k3"}, 1),
    ]
    assert total(store, only={"tenant": "acme"})[0] == 3
    assert total(store, only={"tenant": "acme", "key": "k2", "model": "other"})[0] == 1
    assert [row.of for row in store.rows(UsageQuery(group=("adapter",)))] == [{"adapter": ""}, {"adapter": "loud@2"}]
    assert total(store, only={"tenant": "nobody"}) == (0, 0, 0, 0)


ZONES = ("UTC", "Asia/Shanghai", "Asia/Kolkata", "Asia/Kathmandu", "America/Los_Angeles", "Australia/Lord_Howe")


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("zone", ZONES)
def test_each_request_lies_in_one_day_of_every_zone(sessions: sessionmaker[Session], zone: str, folded: bool) -> None:
    store, where = UsageStore(sessions), ZoneInfo(zone)
    begin = datetime(2026, 11, 25, tzinfo=UTC)
    # Half a minute before and behind each quarter of an hour of three days.
    moments = [begin + timedelta(minutes=15 * n, seconds=s) for n in range(288) for s in (-30, 30)]
    store.book([bill(n, ended=moment.timestamp()) for n, moment in enumerate(moments)])
    if folded:
        assert store.fold(begin + timedelta(days=2)) == 2 * 192 + 1
    expected: dict[str, int] = {}
    for moment in moments:
        day = moment.astimezone(where).date().isoformat()
        expected[day] = expected.get(day, 0) + 1
    rows = store.rows(UsageQuery(group=("day",), zone=where))
    assert {row.of["day"]: row.requests for row in rows} == expected
    for day, count in expected.items():
        since = datetime.fromisoformat(day).replace(tzinfo=where)
        until = (datetime.fromisoformat(day) + timedelta(days=1)).replace(tzinfo=where)
        assert total(store, since=since, until=until)[0] == count


def test_old_records_are_added_up_and_nothing_is_lost(sessions: sessionmaker[Session]) -> None:
    store = UsageStore(sessions)
    store.book([bill(n, ended=NOON.timestamp() + 60 * n, key=f"k{n % 3}") for n in range(60)])
    before = store.rows(UsageQuery(group=("key", "day")))
    assert store.fold(NOON + timedelta(minutes=37)) == 30
    assert store.record("gen-0") is None
    assert store.record("gen-30") is not None
    assert store.rows(UsageQuery(group=("key", "day"))) == before
    assert store.fold(NOON + timedelta(minutes=37)) == 0
    assert total(store) == (60, 600, 240, 1200)


def test_slots_are_quarters_of_an_hour() -> None:
    assert slot_of(NOON + timedelta(minutes=44, seconds=59)) == NOON + timedelta(minutes=30)
    assert slot_of(NOON) == NOON
