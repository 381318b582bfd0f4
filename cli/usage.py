"""``cy-llm usage``: what was used, of a running server."""

import json
from typing import Any

import click

from cli.client import ServerClient

_COLUMNS = ("requests", "promptTokens", "cachedTokens", "completionTokens", "totalTokens")


@click.command()
@click.option("--by", default="day", show_default=True, help="day, tenant, key, model, adapter, endpoint; with commas.")
@click.option("--tenant", metavar="NAME", help="Only this tenant's.")
@click.option("--key", metavar="NAME", help="Only this key's, by its name or id.")
@click.option("--model", metavar="ID", help="Only this model's.")
@click.option("--from", "since", metavar="WHEN", help="From that day (2026-11-28) or time on.")
@click.option("--to", "until", metavar="WHEN", help="To that day and with it, or to that time.")
@click.option("--zone", default="UTC", show_default=True, help="Whose days: Asia/Shanghai.")
@click.option("--json", "as_json", is_flag=True, help="For programs: JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="For spreadsheets.")
def usage(
    by: str,
    tenant: str | None,
    key: str | None,
    model: str | None,
    since: str | None,
    until: str | None,
    zone: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Requests and tokens, by day, key, model and more."""
    asked = {"group": by, "tenant": tenant, "key": key, "model": model, "from": since, "to": until, "zone": zone}
    params = {name: value for name, value in asked.items() if value is not None}
    client = ServerClient.from_settings()
    if as_csv:
        click.echo(client.text("GET", "/usage", params={**params, "format": "csv"}), nl=False)
        return
    answer = client.call("GET", "/usage", params=params)
    if as_json:
        click.echo(json.dumps(answer))
        return
    _show(answer)


def _show(answer: dict[str, Any]) -> None:
    names = ["keyName" if name == "key" else name for name in answer["group"]]
    rows = [[*(str(row[name] or "-") for name in names), *_numbers(row)] for row in answer["rows"]]
    total = ["total", *[""] * len(names)][: len(names)]
    head = [*names, "requests", "prompt", "cached", "completion", "total"]
    table = [head, *rows, [*total, *_numbers(answer["total"])]]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    for line in table:
        words = [cell.ljust(width) for cell, width in zip(line[: len(names)], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(line[len(names) :], widths[len(names) :], strict=True)]
        click.echo("  ".join([*words, *numbers]))
    click.echo(f"\nDays are those of {answer['zone']}.")


def _numbers(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:,}" for name in _COLUMNS]
