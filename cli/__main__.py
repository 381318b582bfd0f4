"""``bin/cy-llm``: every command."""

import sys

import click

from cli.adapters import adapters
from cli.bench import bench
from cli.chat import chat
from cli.completion import completion
from cli.config_check import config
from cli.configuration import configuration
from cli.diagnose import diagnose
from cli.doctor import doctor
from cli.fetch import fetch
from cli.keys import keys
from cli.models import models
from cli.request_logs import logs
from cli.status import status
from cli.training import jobs, train
from cli.usage import usage
from text import is_whole, tolerate_any_terminal


@click.group()
def cli() -> None:
    """CY-LLM Engine on the command line: "keys" and "doctor" look for themselves; all else asks the server."""


_OPERATING = (status, logs, completion, keys, usage, models, fetch, diagnose, doctor, bench, config, configuration)
for command in (train, jobs, adapters, chat, *_OPERATING):
    cli.add_command(command)


def main() -> None:
    """Run the command that the arguments name."""
    tolerate_any_terminal()
    for number, argument in enumerate(sys.argv[1:], 1):
        if not is_whole(argument):
            raise SystemExit(f"cy-llm: argument {number} is not UTF-8 text")
    cli(prog_name="cy-llm")


if __name__ == "__main__":
    main()
