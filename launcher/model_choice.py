"""Which model ``bin/serve`` serves; one that is fetched is got ready first."""

from collections.abc import Callable, Mapping
from pathlib import Path

from engines.errors import ConfigError
from engines.model_spec import ModelSpec
from engines.models.download import CannotFetch
from engines.models.fetch import ensure_model
from engines.models.sources import source_name
from engines.registry import Registry
from settings import Settings

#: What is served where the default cannot be had: it comes with the project.
_FALLBACK = "demo"
#: Steps in which a download's progress is reported. Percent.
_STEP = 10


def choose_model(
    registry: Registry, asked: str, settings: Settings, environment: Mapping[str, str], say: Callable[[str], None]
) -> str:
    """Return the id of the model to serve, fetched if need be; ``asked`` '' is the model file's default.

    Raises ``ConfigError`` for a model that is not configured, ``CannotFetch`` for one that was asked for by name.
    """
    if asked and asked not in registry.models:
        raise ConfigError(f"--model {asked}: the model file has no such model; known: {', '.join(registry.models)}")
    spec = registry.models[asked] if asked else registry.default
    if spec.engine == "fake" or source_name(spec.model_path) is None:
        return spec.id
    try:
        fetch(spec, settings.models_root, environment, say)
    except CannotFetch as error:
        if asked or _FALLBACK not in registry.models:
            raise
        say(f"{error}. Serving the model '{_FALLBACK}' instead")
        return _FALLBACK
    return spec.id


def fetch(spec: ModelSpec, models_root: Path, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Get a model's weights, telling how far it is. Raises ``CannotFetch``."""
    name = source_name(spec.model_path)
    assert name is not None
    last_percent = 0

    def progress(have: int, size: int) -> None:
        nonlocal last_percent
        percent = 100 * have // size
        if percent >= last_percent + _STEP:
            last_percent = percent
            say(f"{spec.id}: {have // 2**20} of {size // 2**20} MiB")

    ensure_model(name, models_root, environment, say, progress)
