"""The tables of API keys and of the tenants whose they are."""

from datetime import datetime

from sqlalchemy import JSON, BigInteger, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from store.principal import Bounds
from store.quota import Quota
from store.sql.tables import Base, Utc, now
from store.tenant import DEFAULT_TENANT


class Bounded:
    """What a key or a tenant may use; null is what the installation's settings say."""

    requests_per_minute: Mapped[int | None]
    streams: Mapped[int | None]
    #: Of prompts and answers together.
    tokens_per_minute: Mapped[int | None]
    #: Tokens in each period (``store.quota``), counted from a moment on, where an operator set the count back.
    quota_tokens: Mapped[int | None] = mapped_column(BigInteger)
    quota_period: Mapped[str | None] = mapped_column(String(8))
    quota_counted_from: Mapped[datetime | None] = mapped_column(Utc)

    @property
    def bounds(self) -> Bounds:
        """These values, as requests are measured by them."""
        return Bounds(self.requests_per_minute, self.streams, self.tokens_per_minute, self.quota)

    @property
    def quota(self) -> Quota | None:
        """The quota; None where there is none."""
        if self.quota_tokens is None or self.quota_period is None:
            return None
        since = self.quota_counted_from
        return Quota(self.quota_tokens, self.quota_period, since.timestamp() if since else 0.0)


class ApiKey(Bounded, Base):
    """A key that clients send. Only its digest is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("tenant", "name"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    #: SHA-256 of the key, hex. Keys are 256 random bits, so no slow hash is needed.
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    #: How the key begins, to tell it from others; empty for those from before it was kept.
    prefix: Mapped[str] = mapped_column(String(16), default="", server_default="")
    #: Comma-separated scopes.
    scopes: Mapped[str] = mapped_column("rights", String(200))
    #: Whose it is; see ``services.access``.
    tenant: Mapped[str] = mapped_column(String(64), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT)
    #: Names of the models and adapters that it may ask for; null is all.
    models: Mapped[list | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(Utc, default=now)
    #: To within a minute.
    last_used_at: Mapped[datetime | None] = mapped_column(Utc)
    expires_at: Mapped[datetime | None] = mapped_column(Utc)
    revoked_at: Mapped[datetime | None] = mapped_column(Utc)
    #: What the key was before it was rotated, which counts until then.
    previous_digest: Mapped[str | None] = mapped_column(String(64), unique=True)
    previous_until: Mapped[datetime | None] = mapped_column(Utc)


class Tenant(Bounded, Base):
    """What is said of a tenant; one of which nothing is said has no row."""

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    #: Its keys are refused.
    blocked_at: Mapped[datetime | None] = mapped_column(Utc)
    updated_at: Mapped[datetime] = mapped_column(Utc, default=now)
