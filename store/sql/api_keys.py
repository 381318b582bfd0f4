"""API keys: who a token belongs to and what it may do."""

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from cachetools import TTLCache
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from settings import Settings
from store.errors import StoreError
from store.sql.tables import ApiKey, now
from store.tenant import DEFAULT_TENANT

#: How long an answer of the database is believed: a revoked key works on for this long. Seconds.
CACHE_SECONDS = 2.0
#: Most tokens remembered; a flood of wrong ones must not grow memory.
CACHE_SIZE = 4096


class Scope(Enum):
    """What a key may do."""

    #: Inference, models, health and adapters, through every face.
    INFERENCE = "inference"
    #: The OpenAI-compatible API alone.
    OPENAI = "openai"
    #: Start, watch and cancel training.
    TRAINING = "training"
    #: Everything an operator does.
    ADMIN = "admin"


ALL_SCOPES = frozenset(Scope)


class KeyNameTakenError(StoreError):
    """A key of that name exists."""


@dataclass(frozen=True)
class Principal:
    """Whose request it is. ``id`` is stable and never the key itself."""

    id: str
    name: str
    scopes: frozenset[Scope] = field(default=ALL_SCOPES)
    #: Whose things it sees and makes.
    tenant: str = DEFAULT_TENANT
    #: Whether its key is a row of the database, which can be revoked.
    revocable: bool = False

    def has_scope(self, scope: Scope) -> bool:
        return scope in self.scopes


#: Everybody, while no key of any kind is configured.
ANONYMOUS = Principal("anonymous", "anonymous")


def digest(token: str) -> str:
    """SHA-256, hex. Keys are 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def new_token() -> str:
    """Return a fresh key: ``cy-`` and 256 random bits."""
    return f"cy-{secrets.token_urlsafe(32)}"


class ApiKeyAuthenticator:
    """Keys of the environment and of the database. Shared by all threads of a process."""

    def __init__(
        self,
        settings: Settings,
        sessions: sessionmaker[Session],
        cache_seconds: float = CACHE_SECONDS,
        cache_size: int = CACHE_SIZE,
    ) -> None:
        self._sessions = sessions
        self._fixed: list[tuple[str, Principal]] = []
        if settings.api_key:
            self._fixed.append((digest(settings.api_key), Principal("env", "CY_LLM_API_KEY")))
        if settings.internal_token:
            self._fixed.append((digest(settings.internal_token), Principal("internal", "CY_LLM_INTERNAL_TOKEN")))
        if settings.gateway_api_token:
            scopes = frozenset({Scope.OPENAI})
            self._fixed.append((digest(settings.gateway_api_token), Principal("gateway", "GATEWAY_API_TOKEN", scopes)))
        #: Digest of a token -> whose it is, or None.
        self._by_digest: TTLCache[str, Principal | None] = TTLCache(cache_size, cache_seconds)
        #: Id of a key -> whether it may still be used.
        self._active: TTLCache[str, bool] = TTLCache(cache_size, cache_seconds)
        self._lock = threading.Lock()
        self._any_key = bool(self._fixed)
        self._any_key_checked = 0.0
        self._cache_seconds = cache_seconds

    def configured(self) -> bool:
        """Whether a key of any kind exists, or existed. While none does, the system is open."""
        if not self._any_key and time.monotonic() - self._any_key_checked >= self._cache_seconds:
            with self._sessions() as session:
                self._any_key = session.scalar(select(ApiKey.id).limit(1)) is not None
            self._any_key_checked = time.monotonic()
        return self._any_key

    def authenticate(self, token: str) -> Principal | None:
        """Return whose token it is, or None. Raises ``SQLAlchemyError``."""
        key_digest = digest(token)
        # Every fixed key is compared, in constant time, so that timing tells nothing.
        found = [principal for known, principal in self._fixed if hmac.compare_digest(known, key_digest)]
        return found[0] if found else self._from_database(key_digest)

    def is_active(self, principal: Principal) -> bool:
        """Whether the principal's key was not revoked since. Raises ``SQLAlchemyError``."""
        if not principal.revocable:
            return True
        with self._lock:
            active = self._active.get(principal.id)
        if active is None:
            with self._sessions() as session:
                row = session.get(ApiKey, principal.id)
            active = row is not None and row.revoked_at is None
            with self._lock:
                self._active[principal.id] = active
        return active

    def find(self, principal_id: str) -> Principal | None:
        """Return whose id it is, revoked or not; for work that goes on behind its call. Raises ``SQLAlchemyError``."""
        for _, principal in self._fixed:
            if principal.id == principal_id:
                return principal
        if principal_id == ANONYMOUS.id:
            return ANONYMOUS
        with self._sessions() as session:
            row = session.get(ApiKey, principal_id)
        return _principal(row) if row is not None else None

    @property
    def cached(self) -> int:
        """How many tokens are remembered now."""
        with self._lock:
            return len(self._by_digest)

    def _from_database(self, key_digest: str) -> Principal | None:
        # The digest of a token that an attacker chooses tells nothing about a key's.
        with self._lock:
            if key_digest in self._by_digest:
                return self._by_digest[key_digest]
        with self._sessions() as session:
            row = session.scalar(select(ApiKey).where(ApiKey.digest == key_digest, ApiKey.revoked_at.is_(None)))
        principal = _principal(row) if row is not None else None
        with self._lock:
            self._by_digest[key_digest] = principal
        return principal


class ApiKeyStore:
    """Adds, lists and revokes keys in the database."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def add(self, name: str, scopes: Iterable[Scope], tenant: str = DEFAULT_TENANT) -> str:
        """Make a key and return it; it cannot be shown again. Raises ``KeyNameTakenError``."""
        token = new_token()
        joined = ",".join(sorted(scope.value for scope in scopes))
        with self._sessions.begin() as session:
            if session.scalar(select(ApiKey.id).where(ApiKey.name == name)) is not None:
                raise KeyNameTakenError(f"a key named {name!r} exists")
            row = ApiKey(id=secrets.token_hex(8), name=name, digest=digest(token), scopes=joined, tenant=tenant)
            session.add(row)
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
    scopes = frozenset(Scope(word) for word in row.scopes.split(",") if word)
    return Principal(row.id, row.name, scopes, row.tenant, revocable=True)
