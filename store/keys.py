"""API keys: who a token belongs to and what it may do."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from settings import Settings
from store.errors import StoreError
from store.models import ApiKey, now

#: How long an answer of the database is believed: a revoked key works on for this long. Seconds.
CACHE_SECONDS = 5.0
#: Most tokens remembered; a flood of wrong ones must not grow memory.
_CACHE_SIZE = 4096


class Right(Enum):
    """What a key may do."""

    #: The native API: inference, models, health.
    INFERENCE = "inference"
    #: The OpenAI-compatible API.
    OPENAI = "openai"
    #: Start, watch and cancel training.
    TRAINING = "training"
    #: Everything an operator does.
    ADMIN = "admin"


ALL_RIGHTS = frozenset(Right)


class KeyNameTaken(StoreError):
    """A key of that name exists."""


@dataclass(frozen=True)
class Principal:
    """Whose request it is. ``id`` is stable and never the key itself."""

    id: str
    name: str
    rights: frozenset[Right] = field(default=ALL_RIGHTS)

    def may(self, right: Right) -> bool:
        return right in self.rights


#: Everybody, while no key of any kind is configured.
ANONYMOUS = Principal("anonymous", "anonymous")


def digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def new_token() -> str:
    """Return a fresh key: ``cy-`` and 256 random bits."""
    return f"cy-{secrets.token_urlsafe(32)}"


class KeyRing:
    """Keys of the environment and of the database. Shared by all threads of a process."""

    def __init__(self, settings: Settings, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions
        self._fixed: list[tuple[str, Principal]] = []
        if settings.api_key:
            self._fixed.append((digest(settings.api_key), Principal("env", "CY_LLM_API_KEY")))
        if settings.internal_token:
            self._fixed.append((digest(settings.internal_token), Principal("internal", "CY_LLM_INTERNAL_TOKEN")))
        if settings.gateway_api_token:
            rights = frozenset({Right.OPENAI})
            self._fixed.append((digest(settings.gateway_api_token), Principal("gateway", "GATEWAY_API_TOKEN", rights)))
        self._cache: dict[str, tuple[float, Principal | None]] = {}
        self._configured = (0.0, False)

    def configured(self) -> bool:
        """Whether a key of any kind exists. While none does, the system is open."""
        if self._fixed:
            return True
        checked, exists = self._configured
        if not exists and time.monotonic() - checked >= CACHE_SECONDS:
            with self._sessions() as session:
                exists = session.scalar(select(ApiKey.id).limit(1)) is not None
            self._configured = (time.monotonic(), exists)
        return exists

    def authenticate(self, token: str) -> Principal | None:
        """Return whose token it is, or None."""
        own = digest(token)
        # Every fixed key is compared, in constant time, so that timing tells nothing.
        found = [principal for known, principal in self._fixed if hmac.compare_digest(known, own)]
        return found[0] if found else self._from_database(own)

    def _from_database(self, own: str) -> Principal | None:
        # The digest of a token that an attacker chooses tells nothing about a key's.
        cached = self._cache.get(own)
        if cached is not None and time.monotonic() - cached[0] < CACHE_SECONDS:
            return cached[1]
        with self._sessions() as session:
            row = session.scalar(select(ApiKey).where(ApiKey.digest == own, ApiKey.revoked_at.is_(None)))
        principal = _principal(row) if row is not None else None
        if len(self._cache) >= _CACHE_SIZE:
            self._cache.clear()
        self._cache[own] = (time.monotonic(), principal)
        return principal


class KeyAdmin:
    """Adds, lists and revokes keys in the database."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def add(self, name: str, rights: Iterable[Right]) -> str:
        """Make a key and return it; it cannot be shown again. Raises ``KeyNameTaken``."""
        token = new_token()
        joined = ",".join(sorted(right.value for right in rights))
        with self._sessions.begin() as session:
            if session.scalar(select(ApiKey.id).where(ApiKey.name == name)) is not None:
                raise KeyNameTaken(f"a key named {name!r} exists")
            session.add(ApiKey(id=secrets.token_hex(8), name=name, digest=digest(token), rights=joined))
        return token

    def list(self) -> list[ApiKey]:
        with self._sessions() as session:
            return list(session.scalars(select(ApiKey).order_by(ApiKey.created_at)))

    def revoke(self, name: str) -> bool:
        """Return whether a living key of that name was revoked."""
        with self._sessions.begin() as session:
            row = session.scalar(select(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_(None)))
            if row is None:
                return False
            row.revoked_at = now()
            return True


def _principal(row: ApiKey) -> Principal:
    return Principal(row.id, row.name, frozenset(Right(word) for word in row.rights.split(",") if word))
