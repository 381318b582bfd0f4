"""``cy-llm adapters``."""

import click

from cli.client import ServerClient


@click.command()
@click.option("--delete", metavar="REF", help="Delete a version (name@2) or all of a name.")
@click.option("--promote", metavar="REF", help="Let the name mean this version (name@2).")
@click.option("--rollback", metavar="NAME", help="Let the name mean what it meant before.")
def adapters(delete: str | None, promote: str | None, rollback: str | None) -> None:
    """List adapters, or change what their names mean."""
    server = ServerClient.from_settings()
    if delete:
        server.call("DELETE", f"/adapters/{delete}")
    if promote:
        name, _, version = promote.partition("@")
        if not (version.isascii() and version.isdigit()):
            raise click.ClickException("--promote wants a version, as in name@2")
        server.call("POST", f"/adapters/{name}/promote", json={"version": int(version)})
    if rollback:
        server.call("POST", f"/adapters/{rollback}/rollback")
    for row in server.call("GET", "/adapters")["adapters"]:
        mark = "*" if row["current"] else " "
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in row["metrics"].items())
        what = f"{row['reference']:<24} {row['baseModel']:<16} rank {row['rank']:<4}"
        click.echo(f"{mark} {what} {row['createdAt']}  {metrics}")
