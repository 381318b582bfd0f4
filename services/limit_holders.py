"""Whose limits a request is measured by: the key's own, and those that all keys of its tenant share."""

from dataclasses import dataclass

from settings import Settings
from store.principal import Bounds, Principal
from store.quota import Quota


@dataclass(frozen=True)
class DefaultBounds:
    """What a key may use that has no limit of its own; 0 is no limit."""

    requests_per_minute: int = 0
    streams: int = 0
    tokens_per_minute: int = 0

    @classmethod
    def of(cls, settings: Settings) -> "DefaultBounds":
        return cls(settings.requests_per_minute, settings.streams_per_key, settings.tokens_per_minute)


@dataclass(frozen=True)
class Holder:
    """Whose a limit is; 0 is no limit."""

    #: In the names of Redis' keys.
    id: str
    #: In messages.
    name: str
    requests_per_minute: int
    streams: int
    tokens_per_minute: int
    quota: Quota | None

    @property
    def measures_tokens(self) -> bool:
        return bool(self.tokens_per_minute or self.quota)


def holders(principal: Principal, default: DefaultBounds) -> tuple[Holder, Holder]:
    """Return the key, and its tenant, with what they may use."""
    own, common = principal.bounds, principal.tenant_bounds
    of_key = Bounds(
        default.requests_per_minute if own.requests_per_minute is None else own.requests_per_minute,
        default.streams if own.streams is None else own.streams,
        default.tokens_per_minute if own.tokens_per_minute is None else own.tokens_per_minute,
        own.quota,
    )
    return (
        _holder(principal.id, "This API key", of_key),
        _holder(f"tenant/{principal.tenant}", f"Tenant '{principal.tenant}'", common),
    )


def _holder(holder_id: str, name: str, bounds: Bounds) -> Holder:
    quota = bounds.quota if bounds.quota and bounds.quota.tokens else None
    return Holder(
        holder_id,
        name,
        bounds.requests_per_minute or 0,
        bounds.streams or 0,
        bounds.tokens_per_minute or 0,
        quota,
    )
