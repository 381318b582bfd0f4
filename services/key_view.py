"""A key as its operators see it, whatever they look through."""

from typing import Any

from store.quota import Quota
from store.sql.key_tables import ApiKey
from store.sql.tables import now
from timestamps import timestamp, unix_timestamp


def describe_key(row: ApiKey) -> dict[str, Any]:
    """Return all that is known of a key, JSON's values; never what it is."""
    moment = now()
    ended = row.expires_at is not None and row.expires_at <= moment
    rotating = row.previous_until is not None and row.previous_until > moment
    return {
        "id": row.id,
        "name": row.name,
        "prefix": row.prefix,
        "tenant": row.tenant,
        "status": "revoked" if row.revoked_at else "expired" if ended else "active",
        "scopes": row.scopes.split(",") if row.scopes else [],
        "models": row.models,
        "requestsPerMinute": row.requests_per_minute,
        "streams": row.streams,
        "tokensPerMinute": row.tokens_per_minute,
        "quota": describe_quota(row.quota),
        "createdAt": timestamp(row.created_at),
        "lastUsedAt": timestamp(row.last_used_at),
        "expiresAt": timestamp(row.expires_at),
        "revokedAt": timestamp(row.revoked_at),
        "oldSecretUntil": timestamp(row.previous_until) if rotating else None,
    }


def describe_quota(quota: Quota | None) -> dict[str, Any] | None:
    """Return a quota as operators give it; ``countedFrom`` where they set its count back."""
    if quota is None:
        return None
    since = {"countedFrom": unix_timestamp(quota.counted_from)} if quota.counted_from else {}
    return {"tokens": quota.tokens, "per": quota.period, **since}
