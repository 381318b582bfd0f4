"""``cy-llm keys``: API keys in the database."""

import click

from settings import Settings
from store.sql import db
from store.sql.api_keys import ALL_SCOPES, ApiKeyStore, KeyNameTakenError, Scope
from store.tenant import DEFAULT_TENANT
from text import has_control_characters


@click.group()
def keys() -> None:
    """API keys in the database."""


@keys.command("add")
@click.argument("name")
@click.option(
    "--scope",
    "--right",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What the key may do; may be given more than once. Without it: everything. (--right is its old name.)",
)
@click.option(
    "--tenant",
    default=DEFAULT_TENANT,
    show_default=True,
    help="Whose things the key sees and makes. Keys of one tenant see each other's requests, jobs and adapters.",
)
def add_key(name: str, scopes: tuple[str, ...], tenant: str) -> None:
    """Make a key called NAME and print it. It cannot be shown again."""
    for value, longest, hint in ((name, 100, "NAME"), (tenant, 64, "--tenant")):
        if not 0 < len(value.strip()) <= longest or has_control_characters(value):
            raise click.BadParameter(f"must have 1 to {longest} characters, none of them invisible", param_hint=hint)
    try:
        token = _store().add(name, [Scope(word) for word in scopes] or ALL_SCOPES, tenant)
    except KeyNameTakenError as error:
        raise click.ClickException(str(error)) from error
    click.echo(token)


@keys.command("list")
def list_keys() -> None:
    """List the keys, without what they are."""
    for row in _store().list():
        state = f"revoked {row.revoked_at:%Y-%m-%d %H:%M}" if row.revoked_at else "active"
        click.echo(f"{row.name:<24} {row.tenant:<16} {row.scopes:<36} {state}")


@keys.command("revoke")
@click.argument("name")
def revoke_key(name: str) -> None:
    """Revoke the key called NAME; it stops working within seconds, and what runs under it ends."""
    if not _store().revoke(name):
        raise click.ClickException(f"no active key is called {name!r}")


def _store() -> ApiKeyStore:
    url = Settings.from_env_or_exit().database_url
    db.migrate(url)
    return ApiKeyStore(db.sessions(db.connect(url)))
