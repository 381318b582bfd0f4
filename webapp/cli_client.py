"""Commands of ``bin/cy-llm`` that talk to a running front door: train, jobs, adapters, chat."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx

from settings import Settings

#: How often a training's progress is asked for. Seconds.
_LOOK_SECONDS = 0.5
_ENDED = ("completed", "failed", "cancelled", "paused")
_BAR_WIDTH = 30


class Api:
    """The native and the OpenAI-compatible API of one server."""

    def __init__(self, url: str, openai_url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(headers=headers, timeout=httpx.Timeout(30, read=600))
        self._url, self._openai_url = url.rstrip("/"), openai_url.rstrip("/")

    def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Return a JSON answer of the native API. Raises ``click.ClickException`` with the server's words."""
        try:
            response = self._http.request(method, f"{self._url}/api/v1{path}", **options)
        except httpx.HTTPError as error:
            raise _no_answer(self._url, error) from error
        _require_success(response)
        answer: dict[str, Any] = response.json()
        return answer

    def chat(self, model: str, messages: list[dict[str, str]]) -> Iterator[str]:
        """Yield the text of an answer as it comes."""
        body = {"model": model, "messages": messages, "stream": True, "temperature": 0, "max_tokens": 512}
        try:
            with self._http.stream("POST", f"{self._openai_url}/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    _require_success(response)
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        chunk = json.loads(line[6:])
                        if "error" in chunk:
                            raise click.ClickException(chunk["error"]["message"])
                        for choice in chunk["choices"]:
                            yield choice["delta"].get("content") or ""
        except httpx.HTTPError as error:
            raise click.ClickException(
                f"{self._openai_url} does not answer ({error}); is bin/serve running?"
            ) from error


def _no_answer(url: str, error: httpx.HTTPError) -> click.ClickException:
    return click.ClickException(f"{url} does not answer ({error}); is bin/serve running?")


def _require_success(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    try:
        error = response.json()["error"]
        lines = [error["message"], *(detail["description"] for detail in error.get("details", []))]
    except (ValueError, KeyError, TypeError):
        lines = [f"the server answered {response.status_code}"]
    raise click.ClickException("\n  ".join(dict.fromkeys(lines)))


def _api() -> Api:
    settings = Settings.from_env()
    own = settings.var / "api_key"
    key = settings.api_key or (own.read_text().strip() if own.exists() else "")
    return Api(f"http://localhost:{settings.port}", f"http://localhost:{settings.openai_port}", key)


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
    api = _api()
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
    job = api.call("POST", "/training/start", json=body)
    click.echo(f"job {job['jobId']}")
    if not detach:
        follow(api, job["jobId"])


def follow(api: Api, job_id: str) -> None:
    """Show a job's progress until it ends. Ctrl-C leaves it running."""
    live = sys.stdout.isatty()
    told = ""
    try:
        while True:
            job = api.call("GET", f"/training/status/{job_id}")
            line = _progress_line(job)
            if live:
                click.echo(f"\r\033[K{line}", nl=False)
            elif line != told and (job["status"] != "running" or job["progress"]["totalSteps"]):
                click.echo(line)
            told = line
            if job["status"] in _ENDED:
                break
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        click.echo(f"\nThe job goes on. bin/cy-llm jobs {job_id} follows it again.")
        return
    if live:
        click.echo()
    if job["status"] == "failed":
        raise click.ClickException(job["message"])
    click.echo(job["message"])
    if adapter := job.get("result", {}).get("adapter"):
        name = adapter.split("@")[0]
        click.echo(f"adapter {adapter} is live. Try it:\n  bin/cy-llm chat --adapter {name}")


def _progress_line(job: dict[str, Any]) -> str:
    progress = job["progress"]
    step, total = progress["currentStep"], progress["totalSteps"]
    if not total:
        return f"{job['status']:<10} preparing"
    done = _BAR_WIDTH * step // total
    bar = "█" * done + "░" * (_BAR_WIDTH - done)
    parts = [f"{job['status']:<10} {bar} {step}/{total}", f"epoch {progress['currentEpoch']}"]
    if progress["loss"] is not None:
        parts.append(f"loss {progress['loss']:.4f}")
    if job["estimatedTimeRemainingSeconds"] is not None:
        parts.append(f"{job['estimatedTimeRemainingSeconds']} s left")
    return "  ".join(parts)


@click.command()
@click.argument("job_id", required=False)
@click.option("--cancel", "wish", flag_value="cancel", help="Cancel the job.")
@click.option("--pause", "wish", flag_value="pause", help="Save a checkpoint and stop.")
@click.option("--resume", "wish", flag_value="resume", help="Go on from the last checkpoint.")
def jobs(job_id: str | None, wish: str | None) -> None:
    """List trainings, follow one, or change one."""
    api = _api()
    if job_id is None:
        for job in api.call("GET", "/training/list")["jobs"]:
            click.echo(
                f"{job['jobId']}  {job['status']:<10} {job['createdAt']}  {job['baseModel']} -> {job['adapterName']}"
            )
        return
    if wish:
        api.call("POST", f"/training/{wish}/{job_id}")
    follow(api, job_id)


@click.command()
@click.option("--delete", metavar="REF", help="Delete a version (name@2) or all of a name.")
@click.option("--promote", metavar="REF", help="Let the name mean this version (name@2).")
@click.option("--rollback", metavar="NAME", help="Let the name mean what it meant before.")
def adapters(delete: str | None, promote: str | None, rollback: str | None) -> None:
    """List adapters, or change what their names mean."""
    api = _api()
    if delete:
        api.call("DELETE", f"/adapters/{delete}")
    if promote:
        name, _, version = promote.partition("@")
        if not version.isdigit():
            raise click.ClickException("--promote wants a version, as in name@2")
        api.call("POST", f"/adapters/{name}/promote", json={"version": int(version)})
    if rollback:
        api.call("POST", f"/adapters/{rollback}/rollback")
    for row in api.call("GET", "/adapters")["adapters"]:
        mark = "*" if row["current"] else " "
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in row["metrics"].items())
        what = f"{row['reference']:<24} {row['baseModel']:<16} rank {row['rank']:<4}"
        click.echo(f"{mark} {what} {row['createdAt']}  {metrics}")


@click.command()
@click.argument("question", required=False)
@click.option("--model", default="default", show_default=True)
@click.option("--adapter", help="An adapter's name, or name@version.")
def chat(question: str | None, model: str, adapter: str | None) -> None:
    """Ask one QUESTION, or talk until an empty line."""
    api = _api()
    messages: list[dict[str, str]] = []
    while True:
        asked = question or click.prompt("you", default="", show_default=False)
        if not asked:
            return
        messages.append({"role": "user", "content": asked})
        answer = ""
        for text in api.chat(adapter or model, messages):
            answer += text
            click.echo(text, nl=False)
        click.echo()
        if question:
            return
        messages.append({"role": "assistant", "content": answer})
