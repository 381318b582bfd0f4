"""The tables of what was used."""

from datetime import datetime

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from store.sql.tables import Base, Utc


class Used:
    """What a row counts, and whose it is."""

    tenant: Mapped[str] = mapped_column(String(64))
    #: Id of the key.
    key_id: Mapped[str] = mapped_column(String(40))
    model: Mapped[str] = mapped_column(String(256))
    #: An adapter's reference or folder; empty for the model alone.
    adapter: Mapped[str] = mapped_column(String(256), default="")
    #: The path that was asked; native requests have one name, whatever they came through.
    endpoint: Mapped[str] = mapped_column(String(64))
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    cached_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    completion_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    #: Begin of the quarter of an hour in which it ended: every day of every time zone is some whole ones of them.
    slot: Mapped[datetime] = mapped_column(Utc)


class UsageRecord(Used, Base):
    """One request. Only ``store.sql.usage`` writes it."""

    __tablename__ = "usage_records"
    __table_args__ = (Index("ix_usage_records_tenant_slot", "tenant", "slot"), Index("ix_usage_records_slot", "slot"))

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    outcome: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=1)
    #: Whether nothing can follow.
    final: Mapped[bool]
    batch: Mapped[bool] = mapped_column(default=False)
    ttft_ms: Mapped[int | None]
    started_at: Mapped[datetime] = mapped_column(Utc)
    ended_at: Mapped[datetime] = mapped_column(Utc)


class UsageSlot(Used, Base):
    """What many requests came to, whose records are not kept any more."""

    __tablename__ = "usage_slots"
    __table_args__ = (Index("ix_usage_slots_tenant_slot", "tenant", "slot"), Index("ix_usage_slots_slot", "slot"))

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    requests: Mapped[int]
