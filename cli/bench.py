"""``cy-llm bench``: this installation beside bare ``vllm serve``, on this machine and with a model of its own."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from settings import Settings


@click.command()
@click.argument("model", required=False)
@click.option("--streams", type=click.IntRange(min=1), multiple=True, help="So many at a time; may be given again.")
@click.option(
    "--share",
    type=click.FloatRange(0.05, 0.95),
    multiple=True,
    help="Requests that come at this share of what vLLM manages.",
)
@click.option(
    "--rounds", type=click.IntRange(min=2), default=4, show_default=True, help="Measurements of each; an even number."
)
@click.option("--together", is_flag=True, help="Both up at once: steadier, where the memory has room for two.")
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), default=Path("bench.svg"), show_default=True
)
def bench(
    model: str | None, streams: tuple[int, ...], share: tuple[float, ...], rounds: int, together: bool, picture: Path
) -> None:
    """Measure MODEL (an id of the model file; without it the default) here and with bare vLLM: a table and a picture.

    Both are started for it, on ports of their own, with the engine arguments of the model's entry; stop bin/serve
    first where a card has room for one.
    """
    if find_spec("vllm") is None:
        raise click.ClickException("vLLM is not installed here: ask on a worker's host")
    if rounds % 2:
        raise click.UsageError("--rounds must be an even number: half of them in each order of starting")
    settings = Settings.from_env_or_exit()
    command = [sys.executable, "-m", "bench.compare", "--shape", "64/64", "--rounds", str(rounds)]
    command += ["--entry", str(settings.config_path.absolute()), "--picture", str(picture.absolute())]
    command += ["--id", model] if model else []
    command += [] if together else ["--in-turn"]
    for one in streams or (() if share else (1, 8, 32)):
        command += ["--streams", str(one)]
    for part in share or (() if streams else (0.6,)):
        command += ["--share", str(part)]
    # bin/cy-llm has put this system's folder on the path of modules, which the processes below need as well.
    sys.stdout.flush()
    os.execv(sys.executable, command)
