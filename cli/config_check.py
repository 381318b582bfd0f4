"""``cy-llm config check``: the model file judged as a worker would, without a GPU and without weights."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from engines.base import ENGINES
from engines.errors import ConfigError
from engines.models.sources import is_fetched, source_name
from engines.registry import Registry, load_registry
from settings import ROOT, Settings, child_environment

#: How long vLLM may take to load and to judge. Seconds.
_CHECK_SECONDS = 180


@click.group()
def config() -> None:
    """The model file."""


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
def check(file: Path | None) -> None:
    """Check the model FILE (default: CY_LLM_CONFIG); what is wrong is one line for each model."""
    settings = Settings.from_env_or_exit()
    path = (file or settings.config_path).expanduser().absolute()
    try:
        registry = load_registry(path, models_root=settings.models_root)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    faults = [fault for fault in _engine_faults(registry) if fault]
    if find_spec("vllm") is None:
        click.echo("vLLM is not installed here: engine_args, parsers and chat templates were not checked", err=True)
    else:
        faults += _ask_vllm(registry, path.parent, settings.models_root)
    for fault in faults:
        click.echo(f"cy-llm: {fault}", err=True)
    if faults:
        raise SystemExit(1)
    for spec in registry.models.values():
        click.echo(f"{spec.id}: in order{_hint(spec.location, source_name(spec.model_path))}")


def _engine_faults(registry: Registry) -> list[str]:
    known = ", ".join(ENGINES)
    return [
        f"model {spec.id!r}: unknown engine {spec.engine!r}; known engines: {known}"
        for spec in registry.models.values()
        if spec.engine not in ENGINES
    ]


def _hint(location: str, source: str | None) -> str:
    if source is not None:
        return "" if is_fetched(Path(location)) else f"; not fetched yet (bin/cy-llm fetch {source})"
    if not Path(location).is_absolute():
        return "; of the model hub"
    return "" if (Path(location) / "config.json").is_file() else "; its folder holds no config.json on this host"


def _ask_vllm(registry: Registry, base: Path, models_root: Path) -> list[str]:
    asked = {"entries": registry.entries, "base": str(base), "models_root": str(models_root)}
    command = [sys.executable, "-m", "engines.vllm.check_models"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**child_environment(), "VLLM_LOGGING_LEVEL": "ERROR"},
            timeout=_CHECK_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise click.ClickException(f"vLLM did not judge the model file within {_CHECK_SECONDS} s") from None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise click.ClickException(f"vLLM cannot be asked: {last[0]}")
    answer: dict[str, str | None] = json.loads(done.stdout.strip().splitlines()[-1])
    return [fault for fault in answer.values() if fault]
