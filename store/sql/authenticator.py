"""Whose a token is."""

import hashlib
import hmac
import threading
import time

from cachetools import TTLCache
from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session, sessionmaker

from settings import Settings
from store.principal import ANONYMOUS, Bounds, Principal, Scope
from store.sql.key_tables import ApiKey, Tenant
from store.sql.tables import now

#: How long an answer of the database is believed, where nobody tells of a change. Seconds; a running stream looks at
#: its key once a second, so that one that was revoked ends within two.
CACHE_SECONDS = 1.0
#: Most tokens remembered; a flood of wrong ones must not grow memory.
CACHE_SIZE = 4096


def digest(token: str) -> str:
    """SHA-256, hex. Keys are 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


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
        #: Id of a key -> whose it is, while it may be used, or None.
        self._by_id: TTLCache[str, Principal | None] = TTLCache(cache_size, cache_seconds)
        self._lock = threading.Lock()
        self._any_key = bool(self._fixed)
        self._any_key_checked = 0.0
        self._cache_seconds = cache_seconds
        #: Keys that were used since :meth:`take_used`.
        self._used: set[str] = set()

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
        if found:
            return found[0]
        principal = self._from_database(key_digest)
        # Its end needs no answer of the database.
        if principal is None or principal.expired:
            return None
        with self._lock:
            self._used.add(principal.id)
        return principal

    def current(self, principal: Principal) -> Principal | None:
        """Return what the principal's key allows by now; None when it may not be used. Raises ``SQLAlchemyError``."""
        if not principal.revocable:
            return principal
        with self._lock:
            known = principal.id in self._by_id
            found = self._by_id.get(principal.id)
        if not known:
            found = self._load(and_(ApiKey.id == principal.id, _usable()))
            with self._lock:
                self._by_id[principal.id] = found
        return None if found is None or found.expired else found

    def is_active(self, principal: Principal) -> bool:
        """Whether the principal's key may still be used. Raises ``SQLAlchemyError``."""
        return self.current(principal) is not None

    def find(self, principal_id: str) -> Principal | None:
        """Return whose id it is, revoked or not; for work that goes on behind its call. Raises ``SQLAlchemyError``."""
        for _, principal in self._fixed:
            if principal.id == principal_id:
                return principal
        return ANONYMOUS if principal_id == ANONYMOUS.id else self._load(ApiKey.id == principal_id)

    def forget(self) -> None:
        """Ask the database anew from now on: keys were changed."""
        with self._lock:
            self._by_digest.clear()
            self._by_id.clear()

    def fixed_names(self) -> dict[str, str]:
        """Return the names of the keys that are in no table, by their ids."""
        return {principal.id: principal.name for principal in (*(each for _, each in self._fixed), ANONYMOUS)}

    def take_used(self) -> set[str]:
        """Return the keys of the database that were used since the last call."""
        with self._lock:
            used, self._used = self._used, set()
        return used

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
        rotated = and_(ApiKey.previous_digest == key_digest, ApiKey.previous_until > now())
        principal = self._load(and_(or_(ApiKey.digest == key_digest, rotated), _usable()))
        with self._lock:
            self._by_digest[key_digest] = principal
        return principal

    def _load(self, condition: ColumnElement[bool]) -> Principal | None:
        statement = select(ApiKey, Tenant).outerjoin(Tenant, Tenant.name == ApiKey.tenant).where(condition)
        with self._sessions() as session:
            for row, tenant in session.execute(statement):
                return _principal(row, tenant)
        return None


def _usable() -> ColumnElement[bool]:
    return and_(ApiKey.revoked_at.is_(None), Tenant.blocked_at.is_(None))


def _principal(row: ApiKey, tenant: Tenant | None) -> Principal:
    return Principal(
        id=row.id,
        name=row.name,
        scopes=frozenset(Scope(word) for word in row.scopes.split(",") if word),
        tenant=row.tenant,
        revocable=True,
        models=None if row.models is None else frozenset(row.models),
        bounds=row.bounds,
        tenant_bounds=Bounds() if tenant is None else tenant.bounds,
        expires_at=None if row.expires_at is None else row.expires_at.timestamp(),
    )
