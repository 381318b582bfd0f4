"""``bin/cy-llm``: what an operator does from a shell."""

import click

from settings import Settings
from store import db
from store.keys import ALL_RIGHTS, KeyAdmin, KeyNameTaken, Right
from webapp import cli_client


@click.group()
def cli() -> None:
    """CY-LLM Engine. ``keys`` uses DATABASE_URL as the front door does; all else asks the running server."""


for command in (cli_client.train, cli_client.jobs, cli_client.adapters, cli_client.chat):
    cli.add_command(command)


@cli.group()
def keys() -> None:
    """API keys in the database."""


@keys.command("add")
@click.argument("name")
@click.option(
    "--right",
    "rights",
    multiple=True,
    type=click.Choice([right.value for right in Right]),
    help="What the key may do; may be given more than once. Without it: everything.",
)
def add_key(name: str, rights: tuple[str, ...]) -> None:
    """Make a key called NAME and print it. It cannot be shown again."""
    try:
        token = _admin().add(name, [Right(word) for word in rights] or ALL_RIGHTS)
    except KeyNameTaken as error:
        raise click.ClickException(str(error)) from error
    click.echo(token)


@keys.command("list")
def list_keys() -> None:
    """List the keys, without what they are."""
    for row in _admin().list():
        state = f"revoked {row.revoked_at:%Y-%m-%d %H:%M}" if row.revoked_at else "active"
        click.echo(f"{row.name:<24} {row.rights:<36} {state}")


@keys.command("revoke")
@click.argument("name")
def revoke_key(name: str) -> None:
    """Revoke the key called NAME; it stops working within seconds."""
    if not _admin().revoke(name):
        raise click.ClickException(f"no active key is called {name!r}")


def _admin() -> KeyAdmin:
    url = Settings.from_env().database_url
    db.migrate(url)
    return KeyAdmin(db.sessions(db.connect(url)))


if __name__ == "__main__":
    cli()
