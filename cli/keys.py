"""``cy-llm keys``: API keys in the database."""

import json
import re
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from cli.redis_address import redis_url
from services.key_view import describe_key
from services.key_watch import announce
from settings import Settings
from store.principal import ALL_SCOPES, Scope
from store.quota import PERIODS, Quota
from store.redis.client import connect
from store.sql import db
from store.sql.api_keys import ApiKeyStore, KeyNameTakenError, KeyRevokedError, NewKey
from store.sql.key_tables import ApiKey
from store.sql.tables import now
from store.tenant import DEFAULT_TENANT
from text import has_control_characters

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="For programs: JSON.")
_OF_TENANT = click.option("--tenant", metavar="NAME", help="Whose key; needed where several tenants have one so named.")


class Moment(click.ParamType):
    """A date, a time, or how far away it is: ``2027-01-31``, ``2027-01-31T12:00:00Z``, ``90d``, ``12h``."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        found = re.fullmatch(r"([0-9]{1,6})([smhd])", value)
        if found:
            return now() + timedelta(seconds=int(found[1]) * _UNITS[found[2]])
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no date, time or span such as 2027-01-31, 2027-01-31T12:00:00Z, 90d, 12h")
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if moment <= now():
            self.fail(f"{value!r} lies in the past")
        return moment


class QuotaType(click.ParamType):
    """Tokens in each period: ``1000000/day``."""

    name = "quota"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Quota:
        try:
            return Quota.parse(value)
        except ValueError as error:
            self.fail(str(error))


class Span(click.ParamType):
    """A span of time: ``90s``, ``30m``, ``12h``, ``7d``; ``0`` is none."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        found = re.fullmatch(r"([0-9]{1,6})([smhd])|0", value)
        if not found:
            self.fail(f"{value!r} is no span such as 30m, 12h, 7d, or 0")
        return timedelta(seconds=int(found[1]) * _UNITS[found[2]]) if found[1] else timedelta()


@click.group()
def keys() -> None:
    """API keys in the database."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "--scopes",
    "--right",
    "scopes",
    multiple=True,
    help=f"What the key may do: {', '.join(scope.value for scope in Scope)}; several with commas, or more than once. "
    "Without it: everything. (--right is its old name.)",
)
@click.option(
    "--tenant",
    default=DEFAULT_TENANT,
    show_default=True,
    help="Whose things the key sees and makes. Keys of one tenant see each other's requests, jobs and adapters.",
)
@click.option("--models", multiple=True, help="Only these models and adapters, with commas or more than once.")
@click.option("--rpm", type=click.IntRange(0), help="Requests a minute; 0: as many as it likes.")
@click.option("--streams", type=click.IntRange(0), help="Requests at once; 0: as many as it likes.")
@click.option("--tpm", type=click.IntRange(0), help="Tokens of prompts and answers a minute; 0: as many as it likes.")
@click.option(
    "--quota",
    type=QuotaType(),
    metavar="TOKENS/PERIOD",
    help=f"1000000/day, by UTC's clock; per {', '.join(PERIODS)}.",
)
@click.option("--expires", type=Moment(), metavar="WHEN", help="Its end: 90d, 12h, 2027-01-31, a time in ISO 8601.")
@_AS_JSON
def create(
    name: str,
    scopes: tuple[str, ...],
    tenant: str,
    models: tuple[str, ...],
    rpm: int | None,
    streams: int | None,
    tpm: int | None,
    quota: Quota | None,
    expires: datetime | None,
    as_json: bool,
) -> None:
    """Make a key called NAME and print it. It cannot be shown again."""
    for value, longest, hint in ((name, 100, "NAME"), (tenant, 64, "--tenant")):
        if not 0 < len(value.strip()) <= longest or has_control_characters(value):
            raise click.BadParameter(f"must have 1 to {longest} characters, none of them invisible", param_hint=hint)
    wanted = NewKey(
        name, _scopes(scopes), tenant, tuple(_words(models)) or None, rpm, streams, tpm, quota, expires_at=expires
    )
    try:
        row, token = _store().make(wanted)
    except KeyNameTakenError as error:
        raise click.ClickException(f"tenant {tenant!r}: {error}") from error
    click.echo(json.dumps({**describe_key(row), "key": token}) if as_json else token)


# Its name in older instructions.
_add = copy(create)
_add.hidden = True
keys.add_command(_add, "add")


@keys.command("list")
@click.option("--tenant", metavar="NAME", help="Only this tenant's.")
@_AS_JSON
def list_keys(tenant: str | None, as_json: bool) -> None:
    """List the keys, without what they are."""
    rows = [describe_key(row) for row in _store().list(tenant)]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        limits = f"{_amount(row['requestsPerMinute'])}/min, {_amount(row['streams'])} at once" + _tokens(row)
        models = "all models" if row["models"] is None else ",".join(row["models"])
        click.echo(
            f"{row['name']:<24} {row['tenant']:<16} {row['prefix'] or '-':<10} {','.join(row['scopes']):<36} "
            f"{models:<24} {limits:<22} used {row['lastUsedAt'] or 'never':<20} {_state(row)}"
        )


@keys.command()
@click.argument("name")
@_OF_TENANT
@_AS_JSON
def show(name: str, tenant: str | None, as_json: bool) -> None:
    """All that is known of the key called NAME."""
    shown = describe_key(_named(_store(), name, tenant))
    if as_json:
        click.echo(json.dumps(shown))
        return
    for field, value in shown.items():
        click.echo(f"{field:<20} {_shown(value)}")


@keys.command("revoke")
@click.argument("name")
@_OF_TENANT
def revoke_key(name: str, tenant: str | None) -> None:
    """Revoke the key called NAME; it stops working within seconds, and what runs under it ends."""
    store = _store()
    row = _named(store, name, tenant)
    if row.revoked_at is not None:
        raise click.ClickException(f"no active key is called {name!r}")
    store.revoke_by_id(row.id)
    _announce()


@keys.command()
@click.argument("name")
@_OF_TENANT
@_AS_JSON
def reset(name: str, tenant: str | None, as_json: bool) -> None:
    """Let the quota of the key called NAME begin anew: what it used in this period counts no more against it."""
    store = _store()
    try:
        row = store.change(_named(store, name, tenant).id, {"quota_counted_from": now()})
    except KeyRevokedError as error:
        raise click.ClickException(f"{error}; make a new one") from error
    _announce()
    click.echo(json.dumps(describe_key(row)) if as_json else f"{name}: the quota begins anew")


@keys.command()
@click.argument("name")
@click.option(
    "--overlap", type=Span(), default="1d", show_default=True, help="How long the old one goes on counting: 30m, 7d, 0."
)
@_OF_TENANT
@_AS_JSON
def rotate(name: str, overlap: timedelta, tenant: str | None, as_json: bool) -> None:
    """Give the key called NAME a new secret and print it."""
    store = _store()
    try:
        row, token = store.rotate(_named(store, name, tenant).id, overlap)
    except KeyRevokedError as error:
        raise click.ClickException(f"{error}; make a new one") from error
    _announce()
    click.echo(json.dumps({**describe_key(row), "key": token}) if as_json else token)


def _scopes(given: tuple[str, ...]) -> frozenset[Scope]:
    known = {scope.value: scope for scope in Scope}
    words = _words(given)
    for word in words:
        if word not in known:
            raise click.BadParameter(f"{word!r} is none of {', '.join(known)}", param_hint="--scope")
    return frozenset(known[word] for word in words) or ALL_SCOPES


def _words(given: tuple[str, ...]) -> list[str]:
    return [word for each in given for part in each.split(",") if (word := part.strip())]


def _named(store: ApiKeyStore, name: str, tenant: str | None) -> ApiKey:
    found = [row for row in store.list(tenant) if row.name == name]
    if not found:
        raise click.ClickException(f"no key is called {name!r}" + (f" in tenant {tenant!r}" if tenant else ""))
    if len(found) > 1:
        tenants = ", ".join(row.tenant for row in found)
        raise click.ClickException(f"several tenants have a key called {name!r} ({tenants}): say which with --tenant")
    return found[0]


def _state(shown: dict[str, Any]) -> str:
    if shown["revokedAt"]:
        return f"revoked {shown['revokedAt']}"
    if shown["status"] == "active" and shown["expiresAt"]:
        return f"active until {shown['expiresAt']}"
    return str(shown["status"])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return f"{value['tokens']} tokens/{value['per']}"
    return "-" if value is None else str(value)


def _tokens(row: dict[str, Any]) -> str:
    """The token limits of a key that has some."""
    each = f", {row['tokensPerMinute']} tokens/min" if row["tokensPerMinute"] else ""
    quota = row["quota"]
    return each + (f", {quota['tokens']} tokens/{quota['per']}" if quota and quota["tokens"] else "")


def _amount(limit: int | None) -> str:
    return "-" if limit is None else str(limit or "any")


def _announce() -> None:
    """Let running processes see it at once, where there are any; else they see it a little later."""
    with connect(redis_url(Settings.from_env_or_exit())) as client:
        announce(client)


def _store() -> ApiKeyStore:
    url = Settings.from_env_or_exit().database_url
    db.migrate(url)
    return ApiKeyStore(db.sessions(db.connect(url)))
