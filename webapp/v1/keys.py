"""``/api/v1/keys`` and ``/api/v1/tenants`` for operators; ``/api/v1/key`` tells whoever asks about their own."""

from datetime import UTC, timedelta
from typing import Any

from flask import Blueprint, Response, jsonify
from marshmallow import fields, post_load, validate

from services.key_view import describe_key, describe_quota
from services.token_limits import HolderUse
from store.principal import ALL_SCOPES, Bounds, Principal, Scope
from store.quota import PERIODS, Quota
from store.sql.api_keys import NewKey, quota_columns
from store.sql.key_tables import Tenant
from store.tenant import DEFAULT_TENANT
from timestamps import timestamp, unix_timestamp
from webapp.http.authentication import authenticate
from webapp.http.current import principal, services
from webapp.http.parsing import parse_body, parse_query
from webapp.schemas.loading import Flag, Integer, Name, NullIsAbsentSchema, StrictSchema

admin_bp = Blueprint("keys", __name__, url_prefix="/api/v1")
own_bp = Blueprint("own_key", __name__, url_prefix="/api/v1")

#: How long the old secret of a rotated key may go on counting. Seconds: 30 days.
_LONGEST_OVERLAP = 30 * 86_400
_DAY = 86_400

_not_empty = validate.Regexp(r".*\S", error="Must not be empty.")
_name = validate.And(validate.Length(max=100), _not_empty)
_tenant = validate.And(validate.Length(max=64), _not_empty)
_amount = validate.Range(min=0, max=2**31 - 1)
_models = (validate.Length(max=1000),)


class QuotaSchema(StrictSchema):
    """Tokens of prompts and answers in each period, which begins by UTC's clock."""

    tokens = Integer(required=True, validate=validate.Range(min=0, max=2**53))
    per = fields.String(required=True, validate=validate.OneOf(PERIODS))

    @post_load
    def to_quota(self, data: dict[str, Any], **_: Any) -> Quota:
        return Quota(data["tokens"], data["per"])


def _scopes(**kwargs: Any) -> fields.List:
    return fields.List(fields.Enum(Scope, by_value=True), validate=validate.Length(min=1), **kwargs)


class KeySchema(StrictSchema):
    """A new key. What is not given is as the installation's settings say: every scope, every model, no end."""

    name = Name(required=True, validate=_name)
    tenant = Name(load_default=DEFAULT_TENANT, validate=_tenant)
    scopes = _scopes(load_default=lambda: list(ALL_SCOPES))
    models = fields.List(Name(validate=validate.Length(min=1, max=256)), validate=_models)
    requests_per_minute = Integer(data_key="requestsPerMinute", validate=_amount)
    streams = Integer(validate=_amount)
    tokens_per_minute = Integer(data_key="tokensPerMinute", validate=_amount)
    quota = fields.Nested(QuotaSchema)
    expires_at = fields.AwareDateTime(data_key="expiresAt", format="iso", default_timezone=UTC)


class ChangeSchema(StrictSchema):
    """What shall be different. Null takes a limit, the list of models or the end away."""

    name = Name(validate=_name)
    scopes = _scopes()
    models = fields.List(Name(validate=validate.Length(min=1, max=256)), validate=_models, allow_none=True)
    requests_per_minute = Integer(data_key="requestsPerMinute", validate=_amount, allow_none=True)
    streams = Integer(validate=_amount, allow_none=True)
    tokens_per_minute = Integer(data_key="tokensPerMinute", validate=_amount, allow_none=True)
    quota = fields.Nested(QuotaSchema, allow_none=True)
    expires_at = fields.AwareDateTime(data_key="expiresAt", format="iso", default_timezone=UTC, allow_none=True)

    def drop_nulls(self, data: Any, **_: Any) -> Any:
        """Null means something here."""
        return data


class TenantSchema(StrictSchema):
    """What shall be different of a tenant. Null takes a limit away."""

    requests_per_minute = Integer(data_key="requestsPerMinute", validate=_amount, allow_none=True)
    streams = Integer(validate=_amount, allow_none=True)
    tokens_per_minute = Integer(data_key="tokensPerMinute", validate=_amount, allow_none=True)
    quota = fields.Nested(QuotaSchema, allow_none=True)
    blocked = Flag()

    def drop_nulls(self, data: Any, **_: Any) -> Any:
        """Null means something here."""
        return data


class RotateSchema(StrictSchema):
    """For how long the old secret goes on counting."""

    overlap = Integer(
        data_key="overlapSeconds", load_default=_DAY, validate=validate.Range(min=0, max=_LONGEST_OVERLAP)
    )


class KeysQuery(NullIsAbsentSchema):
    """``GET /api/v1/keys``."""

    tenant = Name(validate=_tenant)


@admin_bp.post("/keys")
def make() -> tuple[Response, int]:
    """Make a key. ``key`` is shown this once."""
    given = parse_body(KeySchema)
    models = given.pop("models", None)
    wanted = NewKey(
        **{**given, "scopes": frozenset(given["scopes"]), "models": None if models is None else tuple(models)}
    )
    row, token = services().keys.make(principal(), wanted)
    return jsonify({**describe_key(row), "key": token}), 201


@admin_bp.get("/keys")
def list_keys() -> Response:
    """The keys of one tenant, or all; never what they are."""
    rows = services().keys.all(parse_query(KeysQuery).get("tenant"))
    return jsonify({"keys": [describe_key(row) for row in rows]})


@admin_bp.get("/keys/<key_id>")
def show(key_id: str) -> Response:
    """One key."""
    return jsonify(describe_key(services().keys.get(key_id)))


@admin_bp.patch("/keys/<key_id>")
def change(key_id: str) -> Response:
    """Change a key; in force everywhere within two seconds."""
    return jsonify(describe_key(services().keys.change(principal(), key_id, _columns(parse_body(ChangeSchema)))))


@admin_bp.post("/keys/<key_id>/reset")
def reset(key_id: str) -> Response:
    """Let the quota of a key begin anew: what was used in this period counts no more against it."""
    return jsonify(describe_key(services().keys.reset_quota(principal(), key_id)))


@admin_bp.post("/keys/<key_id>/rotate")
def rotate(key_id: str) -> Response:
    """Give a key a new secret; the old one counts for ``overlapSeconds`` more (a day)."""
    overlap = timedelta(seconds=parse_body(RotateSchema)["overlap"])
    row, token = services().keys.rotate(principal(), key_id, overlap)
    return jsonify({**describe_key(row), "key": token})


@admin_bp.delete("/keys/<key_id>")
def revoke(key_id: str) -> Response:
    """End a key for good; what runs under it ends within seconds."""
    return jsonify(describe_key(services().keys.revoke(principal(), key_id)))


@admin_bp.get("/tenants")
def list_tenants() -> Response:
    """Every tenant that has a key, or of which something is said."""
    return jsonify({"tenants": [_describe_tenant(row) for row in services().keys.tenants()]})


@admin_bp.get("/tenants/<name>")
def show_tenant(name: str) -> Response:
    """One tenant."""
    return jsonify(_describe_tenant(services().keys.tenant(name)))


@admin_bp.patch("/tenants/<name>")
def change_tenant(name: str) -> Response:
    """Change what all keys of a tenant may use together; ``blocked`` refuses them."""
    given = _columns(parse_body(TenantSchema))
    blocked = given.pop("blocked", None)
    return jsonify(_describe_tenant(services().keys.change_tenant(principal(), name, given, blocked)))


@admin_bp.post("/tenants/<name>/reset")
def reset_tenant(name: str) -> Response:
    """Let the quota of a tenant begin anew."""
    return jsonify(_describe_tenant(services().keys.reset_tenant_quota(principal(), name)))


@own_bp.get("/key")
def own() -> Response:
    """What the key of this call may do, and what it has used of its token limits."""
    caller = authenticate()
    uses = services().token_limits.used(caller)
    return jsonify({**_describe_principal(caller), "used": [_describe_use(use) for use in uses]})


def _columns(given: dict[str, Any]) -> dict[str, Any]:
    """Return what shall be different as the columns of a key, or a tenant."""
    if "quota" not in given:
        return given
    quota = given.pop("quota")
    return {**given, **quota_columns(quota)}


def _describe_tenant(row: Tenant) -> dict[str, Any]:
    return {
        "name": row.name,
        "blocked": row.blocked_at is not None,
        "requestsPerMinute": row.requests_per_minute,
        "streams": row.streams,
        "tokensPerMinute": row.tokens_per_minute,
        "quota": describe_quota(row.quota),
    }


def _describe_principal(caller: Principal) -> dict[str, Any]:
    return {
        "id": caller.id,
        "name": caller.name,
        "tenant": caller.tenant,
        "scopes": sorted(scope.value for scope in caller.scopes),
        "models": None if caller.models is None else sorted(caller.models),
        **_bounds(caller.bounds),
        "tenantLimits": _bounds(caller.tenant_bounds),
        "expiresAt": None if caller.expires_at is None else unix_timestamp(caller.expires_at),
    }


def _bounds(bounds: Bounds) -> dict[str, Any]:
    return {
        "requestsPerMinute": bounds.requests_per_minute,
        "streams": bounds.streams,
        "tokensPerMinute": bounds.tokens_per_minute,
        "quota": describe_quota(bounds.quota),
    }


def _describe_use(use: HolderUse) -> dict[str, Any]:
    holder, count = use.holder, use.count
    found: dict[str, Any] = {"of": "tenant" if holder.id.startswith("tenant/") else "key", "reserved": count.reserved}
    if holder.tokens_per_minute:
        taken = count.minute + count.reserved
        found["minute"] = {
            "tokens": holder.tokens_per_minute,
            "used": count.minute,
            "remaining": max(0, holder.tokens_per_minute - taken),
        }
    if holder.quota is not None and use.period is not None:
        found["quota"] = {
            **(describe_quota(holder.quota) or {}),
            "used": count.used,
            "remaining": max(0, holder.quota.tokens - count.used - count.reserved),
            "from": timestamp(use.period[0]),
            "renewsAt": timestamp(use.period[1]),
            "zone": "UTC",
        }
    return found
