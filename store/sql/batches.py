"""Batches: the only writer of their state.

Every transition is one conditional UPDATE. A runner takes a batch on by counting its *fence* up; what it writes
afterwards must find the fence as it left it, so that one that was thought dead and comes back changes nothing.
"""

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.elements import ColumnElement

from store.files.batch_folder import BatchFolder, batch_folders
from store.files.ids import is_id, new_id
from store.sql.file_tables import Batch, ClientFile
from store.sql.leases import LeaseLostError, update_one
from store.sql.tables import now

PREFIX = "batch_"


class BatchStatus(Enum):
    """OpenAI's words."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


#: Those that a runner has something to do with.
OPEN = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING)
_OPEN = [status.value for status in OPEN]


class BatchStore:
    """All reads and writes of batches."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    # What a client does.

    def create(
        self,
        batch_id: str,
        *,
        tenant: str,
        owner: str,
        endpoint: str,
        input_file_id: str,
        labels: dict[str, str],
        window: float,
        keep_seconds: int | None,
    ) -> Batch:
        """Save a batch whose file lies where its runner looks for it. ``window``: seconds until it expires."""
        at = now()
        batch = Batch(
            id=batch_id,
            tenant=tenant,
            owner=owner,
            endpoint=endpoint,
            input_file_id=input_file_id,
            status=BatchStatus.VALIDATING.value,
            labels=labels,
            keep_seconds=keep_seconds,
            created_at=at,
            expires_at=at + timedelta(seconds=window),
        )
        with self._sessions.begin() as session:
            session.add(batch)
        return batch

    def load(self, batch_id: str) -> Batch | None:
        if not is_id(batch_id, PREFIX):
            return None
        with self._sessions() as session:
            return session.get(Batch, batch_id)

    def page(self, tenant: str | None, limit: int, after: str | None) -> tuple[list[Batch], bool]:
        """Return batches, newest first, and whether more follow. ``tenant`` None is everybody's."""
        conditions: list[ColumnElement[bool]] = [] if tenant is None else [Batch.tenant == tenant]
        if after is not None:
            conditions.append(Batch.id < after)
        with self._sessions() as session:
            found = list(session.scalars(select(Batch).where(*conditions).order_by(Batch.id.desc()).limit(limit + 1)))
        return found[:limit], len(found) > limit

    def count_open(self, tenant: str) -> int:
        """Return how many batches of a tenant have not come to their end."""
        counted = select(func.count()).select_from(Batch)
        with self._sessions() as session:
            return session.scalar(counted.where(Batch.tenant == tenant, Batch.status.in_(_OPEN))) or 0

    def cancel(self, batch_id: str) -> bool:
        """Let a batch's runner end it. False when it is at its end, or is being cancelled already."""
        sources = [BatchStatus.VALIDATING.value, BatchStatus.IN_PROGRESS.value]
        values = {"status": BatchStatus.CANCELLING.value, "cancelling_at": now()}
        with self._sessions.begin() as session:
            return update_one(session, Batch, [Batch.id == batch_id, Batch.status.in_(sources)], **values)

    def purge_folders(self, root: Path, older_than: float) -> int:
        """Remove the folders of batches that have ended, or were never begun; return how many.

        Only folders that were made ``older_than`` seconds ago: a batch's file is there before its row.
        """
        left = 0
        for batch_id, made in batch_folders(root):
            if not is_id(batch_id, PREFIX) or time.time() - made < older_than:
                continue
            batch = self.load(batch_id)
            if batch is None or batch.status not in _OPEN:
                BatchFolder(root, batch_id).remove()
                left += 1
        return left

    # What a runner does.

    def any_open(self) -> bool:
        """Whether a runner has something to do."""
        with self._sessions() as session:
            return session.scalar(select(Batch.id).where(Batch.status.in_(_OPEN)).limit(1)) is not None

    def open(self) -> list[Batch]:
        """Return what a runner has to do, oldest first."""
        with self._sessions() as session:
            return list(session.scalars(select(Batch).where(Batch.status.in_(_OPEN)).order_by(Batch.id)))

    def claim(self, batch: Batch) -> int | None:
        """Become a batch's runner; return its new fence, None when somebody else was faster."""
        with self._sessions.begin() as session:
            conditions = [Batch.id == batch.id, Batch.fence == batch.fence, Batch.status.in_(_OPEN)]
            taken = update_one(session, Batch, conditions, fence=batch.fence + 1)
        return batch.fence + 1 if taken else None

    def write(self, batch_id: str, fence: int, *sources: BatchStatus, **values: Any) -> bool:
        """Write as a batch's runner, where its status is one of ``sources``; whether it was.

        Raises ``LeaseLostError`` when another runner has it.
        """
        return self._write(batch_id, fence, sources, [], values)

    def finish(
        self,
        batch_id: str,
        fence: int,
        status: BatchStatus,
        files: Mapping[str, ClientFile | None] = MappingProxyType({}),
        **values: Any,
    ) -> None:
        """End a batch. ``files`` are rows to be added, by the column that names them. Raises ``LeaseLostError``."""
        values |= {"status": status.value, "ended_at": now()}
        values |= {name: file.id for name, file in files.items() if file is not None}
        self._write(batch_id, fence, OPEN, [file for file in files.values() if file is not None], values)

    def _write(
        self,
        batch_id: str,
        fence: int,
        sources: tuple[BatchStatus, ...],
        files: list[ClientFile],
        values: dict[str, Any],
    ) -> bool:
        with self._sessions.begin() as session:
            mine = [Batch.id == batch_id, Batch.fence == fence]
            # Takes the row first: SQLite lets no reader become a writer while another one writes.
            if not update_one(session, Batch, mine, fence=fence):
                raise LeaseLostError(f"batch {batch_id} has another runner")
            session.add_all(files)
            states = [status.value for status in sources]
            return update_one(session, Batch, [*mine, Batch.status.in_(states)], **values)


def new_batch_id() -> str:
    """Return an id that sorts by its time."""
    return new_id(PREFIX)


def is_late(batch: Batch, at: datetime | None = None) -> bool:
    """Whether its window is over."""
    return batch.expires_at <= (at or now())
