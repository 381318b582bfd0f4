"""What was used, booked once for each request and added up when it is asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Select, and_, case, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from store.errors import StoreError
from store.sql.usage_tables import UsageRecord, UsageSlot
from store.usage_bill import Bill

#: What usage can be told by, beside the day: word -> column.
COLUMNS = {"tenant": "tenant", "key": "key_id", "model": "model", "adapter": "adapter", "endpoint": "endpoint"}
DAY = "day"
_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")
#: Records of so many requests are added up at a time.
_FOLD_ROWS = 10_000


@dataclass(frozen=True)
class UsageQuery:
    """What is asked for. Times are those at which requests ended; ``until`` is not part of it."""

    #: Columns that rows are told by, and ``day``.
    group: tuple[str, ...] = ()
    #: Column -> its value.
    only: dict[str, str] = field(default_factory=dict)
    since: datetime | None = None
    until: datetime | None = None
    #: Whose days.
    zone: ZoneInfo = ZoneInfo("UTC")


@dataclass
class UsageRow:
    """What requests came to."""

    #: Column -> value, and ``day``.
    of: dict[str, str]
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: "UsageRow") -> None:
        """Count what another row counts, too."""
        for name in ("requests", *_TOKENS):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class StaleRecordsError(StoreError):
    """What was to be added up was gone meanwhile."""


class UsageStore:
    """The records, and what is left of old ones."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def book(self, bills: Iterable[Bill]) -> None:
        """Book what requests used. What is told twice counts once; a later bill of a request stands for it.

        Raises ``SQLAlchemyError``, and nothing is booked then.
        """
        # One statement takes a row once; the last bill of a request has the most.
        by_id: dict[str, Bill] = {}
        for bill in bills:
            known = by_id.get(bill.id)
            by_id[bill.id] = bill if known is None else _merged(known, bill)
        if not by_id:
            return
        rows = [_row(bill) for bill in by_id.values()]
        with self._sessions.begin() as session:
            dialect = session.get_bind().dialect.name
            insert: Any = (postgresql if dialect == "postgresql" else sqlite).insert(UsageRecord).values(rows)
            new, old = insert.excluded, UsageRecord
            counts = {name: _greater(new[name], getattr(old, name)) for name in (*_TOKENS, "attempts")}
            later = {name: new[name] for name in ("outcome", "final", "ended_at", "slot")}
            # A front door that ends a request knows no times; what a worker knew of it stays.
            ttft = func.coalesce(old.ttft_ms, new.ttft_ms)
            follows = and_(old.final.is_(False), or_(new.final.is_(True), new.attempts >= old.attempts))
            session.execute(
                insert.on_conflict_do_update(
                    index_elements=[old.id], set_={**later, **counts, "ttft_ms": ttft}, where=follows
                )
            )

    def rows(self, query: UsageQuery) -> list[UsageRow]:
        """Return what was used, one row for each combination of what it is told by, in that order."""
        found: dict[tuple[str, ...], UsageRow] = {}
        with self._sessions() as session:
            for table in (UsageRecord, UsageSlot):
                for values in session.execute(_sums(table, query)):
                    # Without a group one row comes, of nothing too.
                    if values.requests:
                        self._add(found, query, values)
        return [found[key] for key in sorted(found)]

    def tokens_since(self, moment: datetime, *, key: str | None = None, tenant: str | None = None) -> int:
        """Return prompt and completion tokens of what ended since then, of a key or of a tenant.

        What is older than the records are kept counts from the quarter of an hour on that the moment lies in.
        """
        total = 0
        with self._sessions() as session:
            for table in (UsageRecord, UsageSlot):
                tokens = func.coalesce(func.sum(table.prompt_tokens + table.completion_tokens), 0)
                statement = select(tokens).where(table.slot >= slot_of(moment))
                if table is UsageRecord:
                    statement = statement.where(UsageRecord.ended_at >= moment)
                if key is not None:
                    statement = statement.where(table.key_id == key)
                if tenant is not None:
                    statement = statement.where(table.tenant == tenant)
                total += int(session.scalar(statement) or 0)
        return total

    def record(self, request_id: str) -> UsageRecord | None:
        """Return what one request used."""
        with self._sessions() as session:
            return session.get(UsageRecord, request_id)

    def fold(self, before: datetime) -> int:
        """Add up the records that ended before a moment, and drop them; return how many.

        Raises ``SQLAlchemyError``, ``StaleRecordsError``.
        """
        before, folded = slot_of(before), 0
        while True:
            with self._sessions.begin() as session:
                records = list(
                    session.scalars(
                        select(UsageRecord)
                        .where(UsageRecord.slot < before)
                        .order_by(UsageRecord.slot, UsageRecord.id)
                        .limit(_FOLD_ROWS)
                        .with_for_update(skip_locked=True)
                    )
                )
                session.add_all(_folded(records))
                ids = [record.id for record in records]
                gone: Any = session.execute(delete(UsageRecord).where(UsageRecord.id.in_(ids)))
                if gone.rowcount != len(ids):
                    # Somebody else folds them: nothing of this is kept.
                    raise StaleRecordsError("records of usage were folded by another process at the same time")
            folded += len(records)
            if len(records) < _FOLD_ROWS:
                return folded

    @staticmethod
    def _add(found: dict[tuple[str, ...], UsageRow], query: UsageQuery, values: Any) -> None:
        words = dict(values._mapping)
        slot = words.pop("slot", None)
        of = {name: _day(slot, query.zone).isoformat() if name == DAY else words[name] for name in query.group}
        row = found.setdefault(tuple(of.values()), UsageRow(of))
        row.requests += int(words["requests"])
        for name in _TOKENS:
            setattr(row, name, getattr(row, name) + int(words[name]))


def slot_of(moment: datetime) -> datetime:
    """Return the begin of the quarter of an hour that a moment lies in."""
    moment = moment.astimezone(UTC)
    return moment.replace(minute=moment.minute - moment.minute % 15, second=0, microsecond=0)


def _day(slot: datetime, zone: ZoneInfo) -> date:
    return slot.astimezone(zone).date()


def _sums(table: Any, query: UsageQuery) -> Select[Any]:
    names = [name for name in query.group if name != DAY]
    columns = [getattr(table, COLUMNS[name]).label(name) for name in names]
    columns += [table.slot] if DAY in query.group else []
    requests = func.count() if table is UsageRecord else func.coalesce(func.sum(table.requests), 0)
    sums = [func.coalesce(func.sum(getattr(table, name)), 0).label(name) for name in _TOKENS]
    statement = select(*columns, requests.label("requests"), *sums)
    for name, value in query.only.items():
        statement = statement.where(getattr(table, COLUMNS[name]) == value)
    if query.since is not None:
        statement = statement.where(table.slot >= slot_of(query.since))
    if query.until is not None:
        statement = statement.where(table.slot < slot_of(query.until + timedelta(minutes=15, microseconds=-1)))
    return statement.group_by(*columns)


def _clipped(name: str, value: str) -> str:
    """A word as long as its column: PostgreSQL refuses longer ones, and what was used counts all the same."""
    column: Any = UsageRecord.__table__.c[name]
    return value[: column.type.length]


def _row(bill: Bill) -> dict[str, Any]:
    ended = datetime.fromtimestamp(bill.ended, UTC)
    return {
        "id": bill.id,
        "tenant": _clipped("tenant", bill.tenant),
        "key_id": _clipped("key_id", bill.key),
        "model": _clipped("model", bill.model),
        "adapter": _clipped("adapter", bill.adapter),
        "endpoint": _clipped("endpoint", bill.endpoint),
        "prompt_tokens": bill.prompt_tokens,
        "cached_tokens": bill.cached_tokens,
        "completion_tokens": bill.completion_tokens,
        "slot": slot_of(ended),
        "outcome": _clipped("outcome", bill.outcome),
        "attempts": bill.attempt,
        "final": bill.final,
        "batch": bill.batch,
        "ttft_ms": bill.ttft_ms,
        "started_at": datetime.fromtimestamp(bill.created, UTC),
        "ended_at": ended,
    }


def _merged(known: Bill, later: Bill) -> Bill:
    if known.final or (not later.final and later.attempt < known.attempt):
        return known
    counts = {name: max(getattr(known, name), getattr(later, name)) for name in (*_TOKENS, "attempt")}
    return replace(later, **counts, ttft_ms=known.ttft_ms if later.ttft_ms is None else later.ttft_ms)


def _greater(new: Any, old: Any) -> Any:
    return case((new > old, new), else_=old)


def _folded(records: Sequence[UsageRecord]) -> list[UsageSlot]:
    found: dict[tuple[Any, ...], UsageSlot] = {}
    for record in records:
        whose = {name: getattr(record, name) for name in (*COLUMNS.values(), "slot")}
        row = found.get(tuple(whose.values()))
        if row is None:
            counts = dict.fromkeys((*_TOKENS, "requests"), 0)
            row = found[tuple(whose.values())] = UsageSlot(**whose, **counts)
        row.requests += 1
        for name in _TOKENS:
            setattr(row, name, getattr(row, name) + getattr(record, name))
    return list(found.values())
