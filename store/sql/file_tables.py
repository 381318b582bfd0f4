"""The tables of clients' files, and of the batches that are made of them."""

from datetime import datetime

from sqlalchemy import JSON, BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from store.sql.tables import Base, Utc, now
from store.tenant import DEFAULT_TENANT


class ClientFile(Base):
    """A file that is whole. Only ``store.files`` writes it."""

    __tablename__ = "files"

    #: Ids sort by the time that they were made at: see ``store.files.ids``.
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT, index=True)
    #: The key that it came with.
    owner: Mapped[str] = mapped_column(String(40))
    #: OpenAI's word: ``fine-tune``, ``batch``, ``batch_output`` …
    purpose: Mapped[str] = mapped_column(String(32), index=True)
    #: As the client named it; nothing on disk is called that.
    filename: Mapped[str] = mapped_column(String(255))
    #: How its name on disk ends: what readers of data sets go by.
    suffix: Mapped[str] = mapped_column(String(16), default="")
    bytes: Mapped[int] = mapped_column(BigInteger)
    #: SHA-256, hex.
    checksum: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Utc, default=now)
    #: None is never.
    expires_at: Mapped[datetime | None] = mapped_column(Utc, index=True)


class Upload(Base):
    """A file that comes in parts."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT, index=True)
    owner: Mapped[str] = mapped_column(String(40))
    purpose: Mapped[str] = mapped_column(String(32))
    filename: Mapped[str] = mapped_column(String(255))
    #: As announced: the parts must add up to it.
    bytes: Mapped[int] = mapped_column(BigInteger)
    #: ``pending``, ``completed``, ``cancelled`` or ``expired``.
    status: Mapped[str] = mapped_column(String(16), default="pending", index=True)
    #: How long the file is kept once it is whole, in seconds; None by its purpose.
    keep_seconds: Mapped[int | None]
    #: The file that came of it; empty before.
    file_id: Mapped[str] = mapped_column(String(40), default="")
    created_at: Mapped[datetime] = mapped_column(Utc, default=now)
    expires_at: Mapped[datetime] = mapped_column(Utc, index=True)


class UploadPart(Base):
    """A part of an upload that is whole."""

    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Utc, default=now)


class Batch(Base):
    """Many requests in one file. Only ``store.sql.batches`` writes it."""

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT, index=True)
    #: The key that made it: its lines are its requests.
    owner: Mapped[str] = mapped_column(String(40))
    endpoint: Mapped[str] = mapped_column(String(64))
    input_file_id: Mapped[str] = mapped_column(String(40))
    #: The model of the first line; empty before.
    model: Mapped[str] = mapped_column(String(256), default="")
    #: OpenAI's word.
    status: Mapped[str] = mapped_column(String(16), default="validating", index=True)
    #: Counted up by whoever takes it on: what an earlier runner writes is refused.
    fence: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    #: ``input_tokens``, ``cached_tokens``, ``output_tokens``, ``reasoning_tokens`` of all lines that were answered.
    usage: Mapped[dict] = mapped_column(JSON, default=dict)
    #: What is wrong with the file: ``code``, ``message``, ``param``, ``line``.
    errors: Mapped[list] = mapped_column(JSON, default=list)
    #: The client's own.
    labels: Mapped[dict] = mapped_column("metadata", JSON, default=dict)
    #: How long the output files are kept, in seconds; None is for ever.
    keep_seconds: Mapped[int | None]
    output_file_id: Mapped[str] = mapped_column(String(40), default="")
    error_file_id: Mapped[str] = mapped_column(String(40), default="")
    created_at: Mapped[datetime] = mapped_column(Utc, default=now)
    expires_at: Mapped[datetime] = mapped_column(Utc)
    in_progress_at: Mapped[datetime | None] = mapped_column(Utc)
    cancelling_at: Mapped[datetime | None] = mapped_column(Utc)
    finalizing_at: Mapped[datetime | None] = mapped_column(Utc)
    #: When it came to its end: ``completed``, ``failed``, ``expired`` or ``cancelled``.
    ended_at: Mapped[datetime | None] = mapped_column(Utc)
