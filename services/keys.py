"""API keys and tenants, for operators: made, changed, rotated, revoked, blocked."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from services.errors import Conflict, InvalidRequest, NotFound
from services.key_watch import announce
from store.principal import Principal
from store.sql.api_keys import ApiKeyStore, KeyNameTakenError, KeyNotFoundError, KeyRevokedError, NewKey
from store.sql.key_tables import ApiKey, Tenant
from store.sql.tenants import TenantStore
from store.token_log.outcomes import Detail

log = logging.getLogger(__name__)


class KeyNotFound(NotFound):
    """No key of that id."""

    def __init__(self, key_id: str) -> None:
        description = f"There is no API key '{key_id}'"
        super().__init__(description, [Detail("key_not_found", "id", description)])


class KeyService:
    """The keys of all tenants. Whoever calls it is an operator, and named in the log."""

    def __init__(self, keys: ApiKeyStore, tenants: TenantStore, client: redis.Redis) -> None:
        self._keys = keys
        self._tenants = tenants
        self._redis = client

    def make(self, principal: Principal, wanted: NewKey) -> tuple[ApiKey, str]:
        """Return a new key's row and the key, which cannot be shown again. Raises ``InvalidRequest``, ``Conflict``."""
        _require_future(wanted.expires_at)
        try:
            row, token = self._keys.make(wanted)
        except KeyNameTakenError:
            raise _name_taken(wanted.name) from None
        self._note("made", principal, row)
        return row, token

    def all(self, tenant: str | None = None) -> list[ApiKey]:
        """Return the keys of a tenant, or all, oldest first."""
        return self._keys.list(tenant)

    def get(self, key_id: str) -> ApiKey:
        """Raises ``KeyNotFound``."""
        try:
            return self._keys.get(key_id)
        except KeyNotFoundError:
            raise KeyNotFound(key_id) from None

    def change(self, principal: Principal, key_id: str, values: dict[str, Any]) -> ApiKey:
        """Change columns of a key. Raises ``KeyNotFound``, ``Conflict``, ``InvalidRequest``."""
        _require_future(values.get("expires_at"))
        try:
            row = self._keys.change(key_id, values)
        except KeyNotFoundError:
            raise KeyNotFound(key_id) from None
        except KeyNameTakenError:
            raise _name_taken(values["name"]) from None
        except KeyRevokedError as error:
            raise _revoked(error) from None
        self._note("changed", principal, row, fields=sorted(values))
        return row

    def rotate(self, principal: Principal, key_id: str, overlap: timedelta) -> tuple[ApiKey, str]:
        """Return a key's row and its new secret; the old one counts for ``overlap`` more.

        Raises ``KeyNotFound``, ``Conflict``.
        """
        try:
            row, token = self._keys.rotate(key_id, overlap)
        except KeyNotFoundError:
            raise KeyNotFound(key_id) from None
        except KeyRevokedError as error:
            raise _revoked(error) from None
        self._note("rotated", principal, row)
        return row, token

    def revoke(self, principal: Principal, key_id: str) -> ApiKey:
        """End a key for good, and what runs under it. Raises ``KeyNotFound``."""
        try:
            row = self._keys.revoke_by_id(key_id)
        except KeyNotFoundError:
            raise KeyNotFound(key_id) from None
        self._note("revoked", principal, row)
        return row

    def reset_quota(self, principal: Principal, key_id: str) -> ApiKey:
        """Let the quota of a key begin anew. Raises ``KeyNotFound``, ``Conflict``."""
        return self.change(principal, key_id, {"quota_counted_from": datetime.now(UTC)})

    def reset_tenant_quota(self, principal: Principal, name: str) -> Tenant:
        """Let the quota of a tenant begin anew."""
        return self.change_tenant(principal, name, {"quota_counted_from": datetime.now(UTC)}, None)

    def tenants(self) -> list[Tenant]:
        """Return every tenant that has a key, or of which something is said, by name."""
        known = {row.name: row for row in self._tenants.list()}
        for key in self._keys.list():
            known.setdefault(key.tenant, Tenant(name=key.tenant))
        return [known[name] for name in sorted(known)]

    def tenant(self, name: str) -> Tenant:
        """Return what is said of a tenant."""
        return self._tenants.get(name)

    def change_tenant(self, principal: Principal, name: str, values: dict[str, Any], blocked: bool | None) -> Tenant:
        """Change what a tenant may use; ``blocked`` True refuses all its keys, None leaves that as it is."""
        row = self._tenants.change(name, values, blocked)
        fields = sorted([*values, *([] if blocked is None else ["blocked"])])
        log.info("A tenant was changed", extra={"tenant": name, "fields": fields, "by": principal.name})
        self._announce()
        return row

    def _note(self, what: str, principal: Principal, row: ApiKey, **more: object) -> None:
        extra = {"key": row.name, "key_id": row.id, "tenant": row.tenant, "by": principal.name, **more}
        log.info("An API key was %s", what, extra=extra)
        self._announce()

    def _announce(self) -> None:
        if not announce(self._redis):
            log.warning("Redis is away: the other processes see the change some seconds later")


def _require_future(moment: datetime | None) -> None:
    if moment is not None and moment <= datetime.now(UTC):
        raise InvalidRequest.of("invalid_value", "expiresAt", "Must lie in the future")


def _name_taken(name: str) -> Conflict:
    return Conflict("name_taken", "name", f"The tenant has a key named '{name}'; names of revoked keys stay taken")


def _revoked(error: KeyRevokedError) -> Conflict:
    words = f"{error}; make a new one"
    return Conflict("key_revoked", "id", words[:1].upper() + words[1:])
