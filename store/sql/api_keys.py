"""API keys in the database: made, changed, rotated and revoked."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from store.errors import StoreError
from store.principal import Scope
from store.quota import Quota
from store.sql.authenticator import digest
from store.sql.key_tables import ApiKey
from store.sql.tables import now
from store.tenant import DEFAULT_TENANT

#: How much of a key is kept to tell it from others: 36 of its 256 random bits.
_PREFIX = len("cy-") + 6
#: A use is noted once in so long.
_USE_RESOLUTION = timedelta(minutes=1)


class KeyNameTakenError(StoreError):
    """The tenant has a key of that name."""


class KeyNotFoundError(StoreError):
    """No such key."""


class KeyRevokedError(StoreError):
    """The key was revoked: nothing brings it back."""


@dataclass(frozen=True)
class NewKey:
    """What is wanted of a key. None is: no limit of its own."""

    name: str
    scopes: frozenset[Scope]
    tenant: str = DEFAULT_TENANT
    models: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    streams: int | None = None
    tokens_per_minute: int | None = None
    quota: Quota | None = None
    expires_at: datetime | None = None


def new_token() -> str:
    """Return a fresh key: ``cy-`` and 256 random bits."""
    return f"cy-{secrets.token_urlsafe(32)}"


class ApiKeyStore:
    """The rows of the keys."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def add(self, name: str, scopes: Iterable[Scope], tenant: str = DEFAULT_TENANT) -> str:
        """Make a key and return it; it cannot be shown again. Raises ``KeyNameTakenError``."""
        return self.make(NewKey(name, frozenset(scopes), tenant))[1]

    def make(self, wanted: NewKey) -> tuple[ApiKey, str]:
        """Return a new row and its key, which cannot be shown again. Raises ``KeyNameTakenError``."""
        token = new_token()
        row = ApiKey(
            id=secrets.token_hex(8),
            name=wanted.name,
            digest=digest(token),
            prefix=token[:_PREFIX],
            scopes=_joined(wanted.scopes),
            tenant=wanted.tenant,
            models=None if wanted.models is None else list(wanted.models),
            requests_per_minute=wanted.requests_per_minute,
            streams=wanted.streams,
            tokens_per_minute=wanted.tokens_per_minute,
            **quota_columns(wanted.quota),
            expires_at=wanted.expires_at,
        )
        try:
            with self._sessions.begin() as session:
                session.add(row)
        except IntegrityError:
            raise KeyNameTakenError(f"a key named {wanted.name!r} exists") from None
        return row, token

    def list(self, tenant: str | None = None) -> list[ApiKey]:
        """Return the keys of a tenant, or all, oldest first."""
        statement = select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)
        if tenant is not None:
            statement = statement.where(ApiKey.tenant == tenant)
        with self._sessions() as session:
            return list(session.scalars(statement))

    def get(self, key_id: str) -> ApiKey:
        """Raises ``KeyNotFoundError``."""
        with self._sessions() as session:
            return _existing(session, key_id)

    def change(self, key_id: str, values: dict[str, Any]) -> ApiKey:
        """Change columns of a key. Raises ``KeyNotFoundError``, ``KeyRevokedError``, ``KeyNameTakenError``."""
        if "scopes" in values:
            values = {**values, "scopes": _joined(values["scopes"])}
        try:
            with self._sessions.begin() as session:
                row = _living(session, key_id)
                for name, value in values.items():
                    setattr(row, name, value)
        except IntegrityError:
            raise KeyNameTakenError(f"a key named {values.get('name')!r} exists") from None
        return row

    def rotate(self, key_id: str, overlap: timedelta) -> tuple[ApiKey, str]:
        """Give a key a new secret and return both; the present one counts for ``overlap`` more, an older one no more.

        Raises ``KeyNotFoundError``, ``KeyRevokedError``.
        """
        token = new_token()
        with self._sessions.begin() as session:
            row = _living(session, key_id)
            row.previous_digest, row.previous_until = (row.digest, now() + overlap) if overlap else (None, None)
            row.digest, row.prefix = digest(token), token[:_PREFIX]
        return row, token

    def revoke(self, name: str, tenant: str | None = None) -> bool:
        """Revoke the living keys of that name, of one tenant or of all; whether there was one."""
        with self._sessions.begin() as session:
            statement = select(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_(None))
            if tenant is not None:
                statement = statement.where(ApiKey.tenant == tenant)
            rows = list(session.scalars(statement))
            for row in rows:
                row.revoked_at = now()
        return bool(rows)

    def revoke_by_id(self, key_id: str) -> ApiKey:
        """Revoke a key for good; one that is revoked stays so. Raises ``KeyNotFoundError``."""
        with self._sessions.begin() as session:
            row = _existing(session, key_id)
            row.revoked_at = row.revoked_at or now()
        return row

    def note_use(self, key_ids: Iterable[str]) -> None:
        """Note that keys were used just now."""
        moment = now()
        long_ago = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < moment - _USE_RESOLUTION)
        with self._sessions.begin() as session:
            # One order for all processes: none waits for another in a circle.
            for key_id in sorted(key_ids):
                session.execute(update(ApiKey).where(ApiKey.id == key_id, long_ago).values(last_used_at=moment))


def quota_columns(quota: Quota | None) -> dict[str, Any]:
    """Return a quota as the columns of a key, or a tenant; what was counted stays counted."""
    if quota is None:
        return {"quota_tokens": None, "quota_period": None}
    return {"quota_tokens": quota.tokens, "quota_period": quota.period}


def _joined(scopes: Iterable[Scope]) -> str:
    return ",".join(sorted(scope.value for scope in scopes))


def _existing(session: Session, key_id: str) -> ApiKey:
    row = session.get(ApiKey, key_id)
    if row is None:
        raise KeyNotFoundError(f"there is no key {key_id!r}")
    return row


def _living(session: Session, key_id: str) -> ApiKey:
    row = _existing(session, key_id)
    if row.revoked_at is not None:
        raise KeyRevokedError(f"the key {row.name!r} was revoked")
    return row
