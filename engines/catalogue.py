"""The models as they are: the model file, what operators added to it, and what they wrote over it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.errors import ConfigError
from engines.model_entry import is_template_text, parse_entry, snake_keys
from engines.model_spec import ModelSpec
from engines.registry import Registry


class Origin:
    """Where a model's entry stands."""

    FILE = "file"
    API = "api"


@dataclass(frozen=True)
class Catalogue:
    """All models, and where each is from."""

    registry: Registry
    #: Model id -> ``Origin``.
    origins: Mapping[str, str] = field(default_factory=dict)
    #: Model id -> what lies over its entry in the model file.
    overrides: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    #: Model id -> why what was written of it is not in force.
    faults: Mapping[str, str] = field(default_factory=dict)


def merge(
    file: Registry,
    added: Mapping[str, dict[str, Any]],
    overrides: Mapping[str, dict[str, Any]],
    base: Path,
    models_root: Path,
    engine: str = "",
) -> Catalogue:
    """Return the catalogue of a model file and what was written beside it.

    What cannot be (an id or an alias that the file has, an entry that this version refuses) is left out and told in
    ``faults``: it must not keep the other models from being served. ``engine`` replaces every model's own.
    """
    models, aliases = dict(file.models), dict(file.aliases)
    origins = dict.fromkeys(models, Origin.FILE)
    faults: dict[str, str] = {}
    used: dict[str, dict[str, Any]] = {}

    def parse(model_id: str, entry: dict[str, Any]) -> ModelSpec:
        spec = parse_entry(model_id, entry, base, models_root)
        require_free_names(model_id, spec.aliases, models, aliases)
        return replace(spec, engine=engine) if engine else spec

    for model_id, entry in added.items():
        try:
            if model_id in file.models or model_id in file.aliases:
                raise ConfigError(
                    f"model {model_id!r} was added by an operator, and the model file has the name too: the file's "
                    "is in force; rename one of them"
                )
            models[model_id] = parse(model_id, entry)
            origins[model_id] = Origin.API
            aliases |= dict.fromkeys(models[model_id].aliases, model_id)
        except ConfigError as error:
            faults[model_id] = str(error)
    for model_id, values in overrides.items():
        if model_id not in file.models:
            faults[model_id] = f"values lie over model {model_id!r}, which the model file does not have (any more)"
            continue
        try:
            models[model_id] = parse(model_id, overlay(snake_keys(model_id, file.entries[model_id]), values))
            aliases |= dict.fromkeys(models[model_id].aliases, model_id)
            used[model_id] = dict(values)
        except ConfigError as error:
            faults[model_id] = str(error)
    return Catalogue(replace(file, models=models, aliases=aliases), origins, used, faults)


def overlay(entry: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry with values over it; None takes a key out."""
    return {key: value for key, value in {**entry, **values}.items() if value is not None}


def require_free_names(
    model_id: str, names: Iterable[str], models: Mapping[str, ModelSpec], aliases: Mapping[str, str]
) -> None:
    """Raise ``ConfigError`` where a name is another model's, or another model's alias."""
    for name in names:
        if (name in models and name != model_id) or aliases.get(name, model_id) != model_id:
            raise ConfigError(f"model {model_id!r}: its alias {name!r} is the name of another model")


def fingerprint(spec: ModelSpec) -> str:
    """Return what tells one state of a model's entry from another, whatever folders a host has."""
    template = spec.chat_template
    if template is not None and not is_template_text(template):
        template = Path(template).name
    adapter = Path(spec.adapter_path).name if spec.adapter_path else None
    same = replace(spec, location="", engine="", adapter_path=adapter, chat_template=template)
    return hashlib.blake2b(repr(same).encode(), digest_size=8).hexdigest()
