"""``cy-llm diagnose``: whether a model fits, before a card is rented for it."""

import json
from pathlib import Path
from typing import Any

import click

from engines.errors import ConfigError, UnknownModel
from engines.models.sources import source_name
from engines.registry import load_registry
from engines.sizing import CARDS, CannotSize, fit, mebibytes, read_folder, sizes_of
from settings import Settings


@click.command()
@click.argument("model")
@click.option("--memory", type=click.FloatRange(min=0.1), metavar="GB", help="A card of your own, by its memory.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diagnose(model: str, memory: float | None, as_json: bool) -> None:
    """How much memory MODEL (an id of the model file) takes, and what context and batch fit on which card."""
    settings = Settings.from_env_or_exit()
    try:
        spec = load_registry(settings.config_path, **settings.registry_options).resolve(model)
        sizes = sizes_of(spec, *_files(spec.location, source_name(spec.model_path)))
    except (ConfigError, UnknownModel, CannotSize) as error:
        raise click.ClickException(str(error)) from None
    cards = {f"yours ({memory:g} GB)": int(memory * 10**9)} if memory else CARDS
    fits = {name: fit(sizes, spec, bytes_) for name, bytes_ in cards.items()}
    if as_json:
        rows: dict[str, Any] = {name: vars(found) for name, found in fits.items()}
        click.echo(json.dumps({"model": spec.id, "sizes": vars(sizes), "cards": rows}))
        return
    split = f", on each of {spec.tensor_parallel_size} cards" if spec.tensor_parallel_size > 1 else ""
    click.echo(f"{spec.id}{split}:")
    click.echo(f"  weights            {mebibytes(sizes.weights)}")
    exact = "" if sizes.exact_kv else " (an estimate: not all of its layers are plain attention)"
    click.echo(f"  KV cache           {sizes.kv_per_token / 1024:.1f} KiB a token{exact}")
    click.echo(f"  activations        {mebibytes(sizes.activations)} (estimate)")
    if sizes.adapters:
        count = f"{spec.max_loras} of rank {spec.max_lora_rank}"
        click.echo(f"  adapters           {mebibytes(sizes.adapters)} ({count}, estimate)")
    click.echo(f"  CUDA, graphs       {mebibytes(sizes.fixed - sizes.weights - sizes.activations - sizes.adapters)}")
    click.echo(f"\n  {'card':<28} {'KV cache':>12} {'context':>9} {'at once':>8}")
    for name, found in fits.items():
        if not found.tokens:
            click.echo(f"  {name:<28} {'does not fit':>12}")
        else:
            click.echo(f"  {name:<28} {found.tokens:>12,} {found.context:>9,} {found.batch:>8}")
    click.echo("\n  KV cache and context in tokens; an estimate for a card that nobody else uses.")


def _files(location: str, source: str | None) -> tuple[dict[str, Any], int]:
    if location.startswith("/"):
        if source is not None and not (Path(location) / "config.json").exists():
            raise CannotSize(f"it has not been fetched: run bin/cy-llm fetch {source}")
        return read_folder(Path(location))
    return _ask_hub(location)


def _ask_hub(repository: str) -> tuple[dict[str, Any], int]:
    """Ask the hub for the config and the sizes alone. Raises ``CannotSize``."""
    try:
        # Of the packages that only workers need.
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise CannotSize("huggingface_hub is not installed here; ask on a worker's host") from None
    try:
        info = HfApi().model_info(repository, files_metadata=True, timeout=30)
        config = json.loads(Path(hf_hub_download(repository, "config.json")).read_text(encoding="utf-8"))
    except Exception as error:
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CannotSize(f"the hub does not tell of {repository}: {words[:200]}") from None
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or []}
    found = sum(size for name, size in sizes.items() if name.endswith(".safetensors") and "/" not in name)
    return config, found or sum(size for name, size in sizes.items() if name.endswith(".bin"))
