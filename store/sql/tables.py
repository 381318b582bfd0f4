"""The tables. Changes go through a migration; a test compares the two."""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    DateTime,
    ForeignKey,
    MetaData,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from store.tenant import DEFAULT_TENANT


def now() -> datetime:
    return datetime.now(UTC)


class Utc(TypeDecorator[datetime]):
    """A point in time, in UTC on every database (SQLite forgets the zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: object) -> datetime | None:
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: object) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        }
    )


class Installation(Base):
    """The one row that tells this installation from others; see ``store.installation``."""

    __tablename__ = "installation"

    #: Always 1: a second row cannot be.
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(String(32))


class TrainingJob(Base):
    """One fine-tuning. Only ``store.sql.jobs`` writes it."""

    __tablename__ = "training_jobs"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    #: The key that started it.
    owner: Mapped[str] = mapped_column(String(40), index=True)
    #: Whose it is; see ``services.access``.
    tenant: Mapped[str] = mapped_column(String(64), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT, index=True)
    status: Mapped[str] = mapped_column(String(16), index=True)
    #: What it shall become while a runner has it: ``paused``, ``cancelled``; empty leaves it alone.
    requested_status: Mapped[str] = mapped_column("wanted", String(16), default="")
    #: As the client named them.
    base_model: Mapped[str] = mapped_column(String(256))
    adapter_name: Mapped[str] = mapped_column(String(64), default="")
    #: ``TrainingSpec`` as JSON, and what happens when it is done (promotion).
    spec: Mapped[dict] = mapped_column(JSON)
    options: Mapped[dict] = mapped_column(JSON, default=dict)

    #: The runner in charge, until when without a renewal, and the number that fences older ones.
    runner: Mapped[str] = mapped_column(String(128), default="")
    lease_ends: Mapped[datetime | None] = mapped_column(Utc)
    fence: Mapped[int] = mapped_column(default=0)
    #: Starts after the runner or trainer was lost.
    restarts: Mapped[int] = mapped_column(default=0)

    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int] = mapped_column(default=0)
    epoch: Mapped[float] = mapped_column(default=0.0)
    loss: Mapped[float | None]
    learning_rate: Mapped[float | None]
    #: Seconds of all runs before the present one.
    seconds_before: Mapped[float] = mapped_column(default=0.0)
    #: Where the present run began.
    run_step: Mapped[int] = mapped_column(default=0)
    run_started_at: Mapped[datetime | None] = mapped_column(Utc)

    message: Mapped[str] = mapped_column(String(1000), default="")
    error_code: Mapped[str] = mapped_column(String(40), default="")
    #: ``kind``, ``path``, ``adapter``, ``metrics`` of a completed job.
    result: Mapped[dict] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(Utc, default=now, index=True)
    started_at: Mapped[datetime | None] = mapped_column(Utc)
    ended_at: Mapped[datetime | None] = mapped_column(Utc)


class TrainingEvent(Base):
    """What happened to a job, in order: the source of metrics and of live progress."""

    __tablename__ = "training_events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("training_jobs.id", ondelete="CASCADE"), index=True)
    #: ``status``, ``metrics``, ``checkpoint`` or ``note``.
    kind: Mapped[str] = mapped_column(String(16))
    step: Mapped[int] = mapped_column(default=0)
    data: Mapped[dict] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(Utc, default=now)


class Adapter(Base):
    """One version of a LoRA adapter; its folder never changes."""

    __tablename__ = "adapters"
    __table_args__ = (UniqueConstraint("name", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64))
    #: Counted over all tenants, so that a reference and a folder never mean two adapters.
    version: Mapped[int]
    tenant: Mapped[str] = mapped_column(String(64), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT, index=True)
    #: Model id that it belongs to.
    base_model: Mapped[str] = mapped_column(String(64), index=True)
    #: Relative to the adapters root.
    path: Mapped[str] = mapped_column(String(200))
    rank: Mapped[int]
    #: SHA-256 over names and contents of its files, hex.
    checksum: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(String(40), default="", index=True)
    #: What OpenAI's clients call it (``ft:…``); empty where only its name and version do.
    model_name: Mapped[str] = mapped_column(String(256), default="", server_default="", index=True)
    #: The step of the checkpoint that it is; 0 for what a training came to. No bare name means a checkpoint.
    step: Mapped[int] = mapped_column(default=0, server_default="0")
    metrics: Mapped[dict] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(Utc, default=now)
    #: Nobody gets it any more; its folder goes when the last request on it can have ended.
    deleted_at: Mapped[datetime | None] = mapped_column(Utc)


class AdapterAlias(Base):
    """Which version a bare adapter name means, and which it meant before."""

    __tablename__ = "adapter_aliases"

    tenant: Mapped[str] = mapped_column(
        String(64), primary_key=True, default=DEFAULT_TENANT, server_default=DEFAULT_TENANT
    )
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int]
    #: 0 when there was none.
    previous: Mapped[int] = mapped_column(default=0)
    updated_at: Mapped[datetime] = mapped_column(Utc, default=now)


class BackgroundJob(Base):
    """Work that no client waits for. Only ``store.sql.background_jobs`` writes it."""

    __tablename__ = "background_jobs"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    #: What is done; see ``tasks.worker.background.handlers``.
    kind: Mapped[str] = mapped_column(String(40), index=True)
    tenant: Mapped[str] = mapped_column(String(64), default=DEFAULT_TENANT)
    status: Mapped[str] = mapped_column(String(16), default="queued", index=True)
    payload: Mapped[dict] = mapped_column(JSON, default=dict)
    #: The runner in charge, until when without a renewal, and the number that fences older ones.
    runner: Mapped[str] = mapped_column(String(128), default="")
    lease_ends: Mapped[datetime | None] = mapped_column(Utc)
    fence: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    message: Mapped[str] = mapped_column(String(1000), default="")
    created_at: Mapped[datetime] = mapped_column(Utc, default=now)
    ended_at: Mapped[datetime | None] = mapped_column(Utc, index=True)


class StoredModel(Base):
    """What operators wrote of a model: an entry of its own, or values over an entry of the model file."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    #: ``entry`` or ``override``.
    kind: Mapped[str] = mapped_column(String(16))
    #: Keys of the model file, in snake_case.
    entry: Mapped[dict] = mapped_column(JSON)
    #: The change that wrote it last.
    revision: Mapped[int]
    updated_at: Mapped[datetime] = mapped_column(Utc, default=now)


class ModelPlacement(Base):
    """Whether a worker shall serve a model, as an operator said; without a row, as the worker was started."""

    __tablename__ = "model_placements"

    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    #: Celery's node name.
    worker: Mapped[str] = mapped_column(String(128), primary_key=True)
    loaded: Mapped[bool]
    revision: Mapped[int]


class ModelChange(Base):
    """The history. The highest id is the revision that processes compare."""

    __tablename__ = "model_changes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model: Mapped[str] = mapped_column(String(64), index=True)
    action: Mapped[str] = mapped_column(String(16))
    values: Mapped[dict] = mapped_column(JSON, default=dict)
    #: Id of the key.
    changed_by: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(Utc, default=now)
