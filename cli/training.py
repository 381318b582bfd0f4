"""``cy-llm train`` and ``cy-llm jobs``."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cli.client import ServerClient

#: How often a training's progress is asked for. Seconds.
_POLL_SECONDS = 0.5
_ENDED = ("completed", "failed", "cancelled", "paused")


@click.command()
@click.argument("dataset")
@click.option("--name", required=True, help="What the adapter shall be called.")
@click.option("--base", default="default", show_default=True, help="Base model, by its id.")
@click.option("--epochs", type=float, help="Times that every row is seen.")
@click.option("--learning-rate", type=float)
@click.option("--rank", type=int, help="LoRA rank.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=JSON", help="Any other field of hyperParams.")
@click.option("--detach", is_flag=True, help="Start it and leave.")
def train(
    dataset: str,
    name: str,
    base: str,
    epochs: float | None,
    learning_rate: float | None,
    rank: int | None,
    settings: tuple[str, ...],
    detach: bool,
) -> None:
    """Fine-tune an adapter on DATASET, a file in one of the server's data folders; follow it to its end."""
    server = ServerClient.from_settings()
    given = {"epochs": epochs, "learningRate": learning_rate, "loraRank": rank}
    params: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    for setting in settings:
        field, _, value = setting.partition("=")
        try:
            params[field] = json.loads(value)
        except ValueError:
            params[field] = value
    # A path of this machine, where there is one: the server checks that it lies in a data folder.
    path = str(Path(dataset).resolve()) if Path(dataset).exists() else dataset
    body = {"baseModel": base, "datasetPath": path, "outputDir": name, "adapterName": name, "hyperParams": params}
    job = server.call("POST", "/training/start", json=body)
    click.echo(f"job {job['jobId']}")
    if not detach:
        follow(server, job["jobId"])


@click.command()
@click.argument("job_id", required=False)
@click.option("--cancel", "change", flag_value="cancel", help="Cancel the job.")
@click.option("--pause", "change", flag_value="pause", help="Save a checkpoint and stop.")
@click.option("--resume", "change", flag_value="resume", help="Go on from the last checkpoint.")
def jobs(job_id: str | None, change: str | None) -> None:
    """List trainings, follow one, or change one."""
    server = ServerClient.from_settings()
    if job_id is None:
        for job in server.call("GET", "/training/list")["jobs"]:
            what = f"{job['jobId']}  {job['status']:<10} {job['createdAt']}"
            click.echo(f"{what}  {job['baseModel']} -> {job['adapterName']}")
        return
    if change:
        server.call("POST", f"/training/{change}/{job_id}")
    follow(server, job_id)


def follow(server: ServerClient, job_id: str) -> None:
    """Show a job's progress until it ends. Ctrl-C leaves it running."""
    try:
        job = _follow_bar(server, job_id) if sys.stdout.isatty() else _follow_lines(server, job_id)
    except KeyboardInterrupt:
        click.echo(f"\nThe job goes on. bin/cy-llm jobs {job_id} follows it again.")
        return
    if job["status"] == "failed":
        raise click.ClickException(job["message"])
    click.echo(job["message"])
    if adapter := job.get("result", {}).get("adapter"):
        click.echo(f"adapter {adapter} is live. Try it:\n  bin/cy-llm chat --adapter {adapter.split('@')[0]}")


def _follow_bar(server: ServerClient, job_id: str) -> dict[str, Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
    with Progress(*columns, console=Console()) as bar:
        task = bar.add_task("queued", total=None, facts="")
        while True:
            job = _status(server, job_id)
            progress = job["progress"]
            bar.update(
                task,
                description=job["status"],
                completed=progress["currentStep"],
                total=progress["totalSteps"] or None,
                facts=_facts(job),
            )
            if job["status"] in _ENDED:
                return job
            time.sleep(_POLL_SECONDS)


def _follow_lines(server: ServerClient, job_id: str) -> dict[str, Any]:
    """A line for each change, for a file or a pipe."""
    shown = ""
    while True:
        job = _status(server, job_id)
        progress = job["progress"]
        line = f"{job['status']:<10} {progress['currentStep']}/{progress['totalSteps'] or '?'}  {_facts(job)}".rstrip()
        if line != shown and (job["status"] != "running" or progress["totalSteps"]):
            click.echo(line)
        shown = line
        if job["status"] in _ENDED:
            return job
        time.sleep(_POLL_SECONDS)


def _status(server: ServerClient, job_id: str) -> dict[str, Any]:
    return server.call("GET", f"/training/status/{job_id}")


def _facts(job: dict[str, Any]) -> str:
    progress = job["progress"]
    parts = [f"epoch {progress['currentEpoch']}"] if progress["totalSteps"] else ["preparing"]
    if progress["loss"] is not None:
        parts.append(f"loss {progress['loss']:.4f}")
    if job["estimatedTimeRemainingSeconds"] is not None:
        parts.append(f"{job['estimatedTimeRemainingSeconds']} s left")
    return "  ".join(parts)
