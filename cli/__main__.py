"""``bin/cy-llm``: every command."""

import click

from cli.adapters import adapters
from cli.chat import chat
from cli.configuration import configuration
from cli.keys import keys
from cli.training import jobs, train


@click.group()
def cli() -> None:
    """CY-LLM Engine on the command line: "keys" uses DATABASE_URL, as the front door does; all else asks the server."""


for command in (train, jobs, adapters, chat, keys, configuration):
    cli.add_command(command)


if __name__ == "__main__":
    cli(prog_name="cy-llm")
