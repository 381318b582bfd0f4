"""``cy-llm status``: the whole system on one screen."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import click
from prometheus_client.parser import text_string_to_metric_families

from cli.client import ServerClient

#: Between two looks, for what is told by the second. Seconds.
_BETWEEN_SECONDS = 1.0
Samples = dict[str, list[tuple[dict[str, str], float]]]


@click.command()
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="For programs: JSON; with --watch a line at a time.")
def status(watch: bool, as_json: bool) -> None:
    """Workers, models, queues, tokens a second, errors, jobs: what runs now. Needs a key with the scope admin."""
    with closing(ServerClient.from_settings()) as client:
        for found in _looks(client):
            if watch and not as_json:
                click.clear()
            click.echo(json.dumps(found) if as_json else _screen(found))
            if not watch:
                return


def _looks(client: ServerClient) -> Iterator[dict[str, Any]]:
    before, then = _scrape(client), time.monotonic()
    while True:
        time.sleep(_BETWEEN_SECONDS)
        now, at = _scrape(client), time.monotonic()
        yield _summary(client, before, now, at - then)
        before, then = now, at


def _scrape(client: ServerClient) -> Samples:
    text = client.text("GET", "/metrics", root=True)
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def _sum(samples: Samples, name: str, **labels: str) -> float:
    return sum(value for of, value in samples.get(name, []) if labels.items() <= of.items())


def _by(samples: Samples, name: str, label: str) -> dict[str, int]:
    return {of[label]: int(value) for of, value in samples.get(name, [])}


def _errors(samples: Samples) -> float:
    return sum(value for of, value in samples.get("cy_llm_requests_total", []) if of["code"] == "INTERNAL_ERROR")


def _summary(client: ServerClient, before: Samples, now: Samples, seconds: float) -> dict[str, Any]:
    def rate(name: str, **labels: str) -> float:
        return round((_sum(now, name, **labels) - _sum(before, name, **labels)) / seconds, 1)

    models = client.call("GET", "/models")["models"]
    engines: dict[str, dict[str, dict[str, int]]] = {}
    for key, word in (("cy_llm_engine_running", "running"), ("cy_llm_engine_waiting", "waiting")):
        for of, value in now.get(key, []):
            engines.setdefault(of["worker"], {}).setdefault(of["model"], {})[word] = int(value)
    in_flight, capacity = _by(now, "cy_llm_worker_in_flight", "worker"), _by(now, "cy_llm_worker_capacity", "worker")
    return {
        "redis": bool(_sum(now, "cy_llm_redis_up")),
        "database": bool(_sum(now, "cy_llm_database_up")),
        "workers": [
            {
                "name": name,
                "inFlight": in_flight[name],
                "capacity": capacity.get(name, 0),
                "models": engines.get(name, {}),
            }
            for name in sorted(in_flight)
        ],
        "workerStates": _by(now, "cy_llm_workers", "state"),
        "models": [{"id": row["id"], "status": row["status"]} for row in models],
        "queues": _by(now, "cy_llm_queue_depth", "queue"),
        # Of the front door that was asked.
        "streams": int(_sum(now, "cy_llm_streams")),
        "tokensPerSecond": rate("cy_llm_tokens_total", kind="completion"),
        "requestsPerSecond": rate("cy_llm_outcomes_total"),
        "requests": int(_sum(now, "cy_llm_outcomes_total")),
        "internalErrors": int(_errors(now)),
        "failovers": int(_sum(now, "cy_llm_failovers_total")),
        "refusedByLimit": _by(now, "cy_llm_refused_by_limit_total", "limit"),
        "unbooked": int(_sum(now, "cy_llm_unbooked_requests")),
        "trainings": {name: count for name, count in _by(now, "cy_llm_training_jobs", "status").items() if count},
        "batches": {name: count for name, count in _by(now, "cy_llm_batches", "status").items() if count},
        "running": [
            {
                "job": of["job"],
                "step": int(value),
                "steps": int(_sum(now, "cy_llm_training_steps_planned", job=of["job"])),
            }
            for of, value in now.get("cy_llm_training_step", [])
        ],
    }


def _screen(found: dict[str, Any]) -> str:
    parts = {"Redis": found["redis"], "database": found["database"]}
    away = [name for name, up in parts.items() if not up]
    lines = [", ".join(f"{name} does not answer" for name in away) or "Redis and the database answer", ""]
    states = ", ".join(f"{count} {state}" for state, count in found["workerStates"].items() if count)
    lines.append(f"workers    {states or 'none'}")
    for worker in found["workers"]:
        engines = ", ".join(
            f"{model} {load.get('running', 0)} running, {load.get('waiting', 0)} waiting"
            for model, load in worker["models"].items()
        )
        lines.append(f"  {worker['name']:<24} {worker['inFlight']} of {worker['capacity']} requests  {engines}")
    lines.append("models     " + ", ".join(f"{row['id']} {row['status']}" for row in found["models"]))
    waiting = {name: count for name, count in found["queues"].items() if count}
    lines.append("queues     " + (", ".join(f"{name} {count}" for name, count in waiting.items()) or "nobody waits"))
    lines.append(
        f"now        {found['streams']} streams, {found['tokensPerSecond']} tokens/s, "
        f"{found['requestsPerSecond']} requests/s (of this front door)"
    )
    refused = sum(found["refusedByLimit"].values())
    lines.append(
        f"so far     {found['requests']} requests, {found['internalErrors']} internal errors, "
        f"{found['failovers']} failovers, {refused} refused by a limit"
    )
    for word in ("trainings", "batches"):
        if found[word]:
            lines.append(f"{word:<10} " + ", ".join(f"{count} {name}" for name, count in found[word].items()))
    lines += [f"  {each['job']}: step {each['step']} of {each['steps']}" for each in found["running"]]
    if found["unbooked"]:
        lines.append(f"usage      {found['unbooked']} requests wait to be booked")
    return "\n".join(lines)
