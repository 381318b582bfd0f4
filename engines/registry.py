"""The model file -> a :class:`Registry`, checked once, at load.

Two shapes are read, ``{"models": {id: {...}}}`` and flat ``{id: {...}}``. An entry that is a string is an alias for
another entry; the alias ``default`` (or ``"default": id`` beside ``models``) names the model that a request without
one gets.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.errors import ConfigError, UnknownModel
from engines.model_entry import parse_entry
from engines.model_spec import ModelSpec
from text import NotText, decode, require_whole_characters

#: The name of the model that a request without one gets.
DEFAULT_ALIAS = "default"


@dataclass(frozen=True)
class Registry:
    """The models of one file. ``aliases`` maps a further name to a model id."""

    models: Mapping[str, ModelSpec]
    aliases: Mapping[str, str]
    #: Each model's entry as it was written.
    entries: Mapping[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def default(self) -> ModelSpec:
        return self.resolve(DEFAULT_ALIAS)

    def resolve(self, name: str) -> ModelSpec:
        """Return the model called ``name``, or that ``name`` is an alias of. Raises ``UnknownModel``."""
        try:
            return self.models[self.aliases.get(name, name)]
        except KeyError:
            raise UnknownModel(f"Model {name!r} is not configured") from None

    def aliases_of(self, model_id: str) -> list[str]:
        return [alias for alias, target in self.aliases.items() if target == model_id]


def load_registry(path: Path, engine: str = "", default: str = "", models_root: Path | None = None) -> Registry:
    """Read the model file at ``path``. A given ``engine`` replaces every model's own, a given ``default`` the file's;
    models that are fetched lie in ``models_root``.

    Raises ``ConfigError``; its message names the file and what has to change.
    """
    try:
        written = decode(path.read_bytes())
        document = json.loads(written)
        require_whole_characters(written, document)
    except FileNotFoundError:
        raise ConfigError(f"model file {path.name} does not exist") from None
    except IsADirectoryError:
        raise ConfigError(f"model file {path.name} is a folder; CY_LLM_CONFIG must name a file") from None
    except NotText as error:
        where = f": {error.field}" if error.field else ""
        raise ConfigError(f"model file {path.name}{where} {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"model file {path.name} cannot be read as JSON: {error}") from error
    registry = parse_registry(document, path.parent, models_root)
    if default:
        if default not in registry.models:
            known = ", ".join(registry.models)
            raise ConfigError(f"CY_LLM_MODEL names {default!r}, which the model file does not have; known: {known}")
        registry = replace(registry, aliases={**registry.aliases, DEFAULT_ALIAS: default})
    if not engine:
        return registry
    return replace(registry, models={key: replace(spec, engine=engine) for key, spec in registry.models.items()})


def parse_registry(document: Any, base: Path, models_root: Path | None = None) -> Registry:
    """Turn a parsed model file into a registry; ``base`` is what relative paths start from."""
    models_root = models_root or base / "var" / "models"
    entries, aliases = _split(document)
    if not entries:
        raise ConfigError("the model file holds no model")
    specs = {model_id: parse_entry(model_id, entry, base, models_root) for model_id, entry in entries.items()}
    for spec in specs.values():
        for alias in spec.aliases:
            if alias in specs or aliases.get(alias, spec.id) != spec.id:
                raise ConfigError(f"model {spec.id!r}: its alias {alias!r} is the name of another model")
            aliases[alias] = spec.id
    if DEFAULT_ALIAS not in specs:
        aliases.setdefault(DEFAULT_ALIAS, next(iter(specs)))
    for alias, target in aliases.items():
        if target not in specs:
            raise ConfigError(f"alias {alias!r} names model {target!r}; known models: {', '.join(specs)}")
    return Registry(specs, aliases, entries)


def _split(document: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Take both shapes apart into model entries and aliases."""
    if not isinstance(document, dict):
        raise ConfigError(f"the model file must be a JSON object, not {type(document).__name__}")
    listed = document
    aliases: dict[str, str] = {}
    if "models" in document:
        extra = sorted(set(document) - {"models", "default"})
        if extra:
            raise ConfigError(f"unknown key {extra[0]!r} beside 'models'; allowed: 'models', 'default'")
        listed = document["models"]
        if not isinstance(listed, dict):
            raise ConfigError("'models' must be an object of model entries")
        if "default" in document:
            if not isinstance(document["default"], str):
                raise ConfigError("'default' beside 'models' must be the id of a model")
            aliases["default"] = document["default"]
    aliases.update({key: value for key, value in listed.items() if isinstance(value, str)})
    return {key: value for key, value in listed.items() if not isinstance(value, str)}, aliases
