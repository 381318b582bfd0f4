"""What was used, for those whose it is."""

from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from services.access import Access
from services.errors import InvalidRequest
from store.principal import Principal
from store.sql.api_keys import ApiKeyStore
from store.sql.authenticator import ApiKeyAuthenticator
from store.sql.usage import COLUMNS, DAY, UsageQuery, UsageRow, UsageStore


@dataclass(frozen=True)
class UsageReport:
    """Rows of what was used, and what they come to."""

    query: UsageQuery
    rows: list[UsageRow]
    total: UsageRow
    #: Id of a key -> its name, as far as it is known.
    key_names: dict[str, str]


class UsageService:
    """Usage of all tenants, each tenant's for its own keys."""

    def __init__(
        self, store: UsageStore, keys: ApiKeyStore, authenticator: ApiKeyAuthenticator, access: Access
    ) -> None:
        self._store = store
        self._keys = keys
        self._authenticator = authenticator
        self._access = access

    def report(self, principal: Principal, query: UsageQuery) -> UsageReport:
        """Return what the principal may see of what is asked for; of another tenant there is nothing."""
        visible, only = self._access.visible_tenant(principal), dict(query.only)
        names = self._key_names(visible)
        if visible is not None and only.setdefault("tenant", visible) != visible:
            rows: list[UsageRow] = []
        elif "key" in only:
            # By its id, or by its name: several tenants may have one so named.
            ids = [key_id for key_id, name in names.items() if name == only["key"]] or [only["key"]]
            rows = _joined([self._store.rows(replace(query, only={**only, "key": each})) for each in ids])
        else:
            rows = self._store.rows(replace(query, only=only))
        total = UsageRow({})
        for row in rows:
            total.add(row)
        return UsageReport(query, rows, total, names)

    def _key_names(self, tenant: str | None) -> dict[str, str]:
        return {**self._authenticator.fixed_names(), **{row.id: row.name for row in self._keys.list(tenant)}}


def group_of(words: list[str]) -> tuple[str, ...]:
    """Return what rows are told by. Raises ``InvalidRequest``."""
    known = (DAY, *COLUMNS)
    for word in words:
        if word not in known:
            description = f"'{word}' is none of {', '.join(known)}; several are written with commas"
            raise InvalidRequest.of("invalid_value", "group", description)
    return tuple(dict.fromkeys(words))


def zone_of(name: str) -> ZoneInfo:
    """Return a time zone. Raises ``InvalidRequest``."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        description = f"'{name}' is no time zone; they are named as Asia/Shanghai or UTC"
        raise InvalidRequest.of("invalid_value", "zone", description) from None


def moment_of(text: str, field: str, zone: ZoneInfo, is_end: bool) -> datetime:
    """Return the moment that a day or a time means; a day as the end means all of it. Raises ``InvalidRequest``."""
    try:
        if len(text) == len("2026-11-28"):
            day = date.fromisoformat(text) + timedelta(days=is_end)
            return datetime.combine(day, time(), zone)
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        description = f"'{text}' is no day (2026-11-28) and no time (2026-11-28T12:00:00Z)"
        raise InvalidRequest.of("invalid_value", field, description) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)


def _joined(parts: list[list[UsageRow]]) -> list[UsageRow]:
    found: dict[tuple[str, ...], UsageRow] = {}
    for row in (row for part in parts for row in part):
        found.setdefault(tuple(row.of.values()), UsageRow(row.of)).add(row)
    return [found[key] for key in sorted(found)]
