"""``cy-llm logs``: one request's whole story, out of the log files of all processes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from settings import Settings
from text import decode

#: What every line has; the rest is shown as it is.
_COMMON = ("time", "level", "logger", "message", "request_id", "taskName")


@click.command("logs")
@click.argument("request_id")
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path, allow_dash=True),
    help="A log file; may be given again, - is standard input (journalctl -o cat …). Without it: those of bin/serve.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs: the lines as they are.")
def logs(request_id: str, files: tuple[Path, ...], as_json: bool) -> None:
    """Every line of every process about REQUEST_ID, in the order of time.

    REQUEST_ID is a request's id (gen-…), that of an answer (chatcmpl-…, resp_…), or the client's own traceId.
    """
    if not files:
        folder = Settings.from_env_or_exit().var / "log"
        files = tuple(sorted(folder.glob("*.log")))
        if not files:
            raise click.ClickException(f"there are no logs in {folder}; name some with --file")
    found = sorted(_lines(files, _names(request_id)), key=lambda line: str(line[1].get("time", "")))
    if not found:
        where = ", ".join(sorted({path.name for path in files}))
        raise click.ClickException(f"no line about {request_id!r} in {where}")
    for process, line in found:
        click.echo(json.dumps({"process": process, **line}, ensure_ascii=False) if as_json else _shown(process, line))


def _names(request_id: str) -> set[str]:
    """The request's own id beside what the client calls it."""
    ending = re.fullmatch(r"(?:chatcmpl|cmpl|resp|gen)[-_]([0-9a-f]{24})", request_id)
    return {request_id, f"gen-{ending[1]}"} if ending else {request_id}


def _lines(files: tuple[Path, ...], names: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    # As they stand in a line.
    words = [json.dumps(name, ensure_ascii=False)[1:-1].encode() for name in names]
    for path in files:
        with click.open_file(str(path), "rb") as file:
            for raw in file:
                if not any(word in raw for word in words):
                    continue
                try:
                    line = json.loads(decode(raw))
                except ValueError:
                    continue
                if isinstance(line, dict) and _is_about(line, names):
                    yield path.stem, line


def _is_about(line: dict[str, Any], names: set[str]) -> bool:
    """Whether a value is one of the names, or a path ends with one."""
    values = [value for value in line.values() if isinstance(value, str)]
    return any(value == name or value.endswith(f"/{name}") for value in values for name in names)


def _shown(process: str, line: dict[str, Any]) -> str:
    more = " ".join(f"{name}={value}" for name, value in line.items() if name not in _COMMON)
    words = f"{line.get('time', '')}  {process:<10} {line.get('level', ''):<7} {line.get('message', '')}  {more}"
    # A client's own words may hold what moves a terminal's cursor.
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in words.rstrip())
