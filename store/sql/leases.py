"""Leases with fencing, the same for every kind of job: at most one runner, whatever dies.

A runner holds a job by a lease that it renews; each lease has a higher *fence* number, and what a
runner writes must carry the number in force: a runner that was thought dead and comes back changes
nothing (M. Kleppmann, "How to do distributed locking", 2016).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

#: How long a runner may be silent. Seconds.
LEASE_SECONDS = 10.0


class LeaseLostError(Exception):
    """The lease is another runner's: this one must stop and leave everything as it is."""


@dataclass(frozen=True)
class Lease:
    """What a runner holds."""

    job_id: str
    runner: str
    fence: int


def is_claimable(table: Any, at: datetime) -> ColumnElement[bool]:
    """Whether a row of a table with ``status`` and ``lease_ends`` waits for a runner, or has lost its own."""
    lost = (table.status == "running") & (table.lease_ends < at)
    condition: ColumnElement[bool] = (table.status == "queued") | lost
    return condition


def update_one(session: Session, table: Any, conditions: list[ColumnElement[bool]], **values: Any) -> bool:
    """Change the row that meets the conditions; whether there was one.

    One conditional UPDATE, so that of any number of processes that try it exactly one succeeds.
    """
    statement = update(table).where(*conditions).values(**values)
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount == 1
