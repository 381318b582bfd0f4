"""What an entry must fulfil that comes over the API: the model file's own checks, and where its files may lie."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.base import ENGINES
from engines.catalogue import overlay, require_free_names
from engines.errors import ConfigError
from engines.model_entry import is_template_text, parse_entry, snake_keys
from engines.model_spec import ModelSpec
from engines.models.sources import source_name
from services.errors import InvalidRequest
from services.models import ModelCatalog
from settings import Settings

#: ``owner/name`` on the model hub, or a name alone.
_HUB_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")
#: What a folder of weights holds beside its config.json.
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


class ModelChecks:
    """The checks of one process."""

    def __init__(self, settings: Settings, models: ModelCatalog) -> None:
        self._settings = settings
        self._models = models

    def written(self, model: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return an entry as it was written, by keys in snake_case. Raises ``InvalidRequest``."""
        try:
            return snake_keys(model, dict(entry))
        except ConfigError as error:
            raise _invalid(error) from None

    def parsed(self, model: str, entry: dict[str, Any]) -> ModelSpec:
        """Return what an entry means, checked as far as this host can. Raises ``InvalidRequest``."""
        registry = self._models.registry
        base = Path(self._settings.config_path).parent
        try:
            spec = parse_entry(model, overlay(entry, {}), base, self._settings.models_root)
            require_free_names(model, spec.aliases, registry.models, registry.aliases)
        except ConfigError as error:
            raise _invalid(error) from None
        if spec.engine not in ENGINES:
            description = f"'{spec.engine}' is no engine; known: {', '.join(ENGINES)}"
            raise InvalidRequest.of("invalid_value", "engine", description)
        self._require_place(spec)
        return spec

    def _require_place(self, spec: ModelSpec) -> None:
        """Refuse weights, adapters and templates that lie outside the folders that an operator may name from afar."""
        # What the operator of this host wrote into the model file is not asked again.
        unchanged = self._models.file.models.get(spec.id)
        if source_name(spec.model_path) is None and (unchanged is None or unchanged.location != spec.location):
            if spec.location.startswith("/"):
                self._require_weights(Path(spec.location))
            else:
                _require_hub_name(spec.location, "modelPath")
        draft = (spec.speculative_config or {}).get("model")
        if draft is not None and (unchanged is None or unchanged.speculative_config != spec.speculative_config):
            _require_hub_name(str(draft), "speculativeConfig.model")
        if spec.adapter_path and (unchanged is None or unchanged.adapter_path != spec.adapter_path):
            self._require_inside(Path(spec.adapter_path), (self._settings.adapters_root,), "adapterPath")
        template = spec.chat_template
        if template and not is_template_text(template) and (unchanged is None or unchanged.chat_template != template):
            description = "Over the API the template itself is given, not the path of a file"
            raise InvalidRequest.of("invalid_value", "chatTemplate", description)

    def _require_weights(self, folder: Path) -> None:
        self._require_inside(folder, self._settings.model_roots, "modelPath")
        if not (folder / "config.json").is_file():
            raise InvalidRequest.of("no_model", "modelPath", "The folder does not exist here, or holds no config.json")
        if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            wanted = ", ".join(_WEIGHTS)
            raise InvalidRequest.of("no_weights", "modelPath", f"The folder holds no weights ({wanted})")

    @staticmethod
    def _require_inside(path: Path, roots: tuple[Path, ...], field: str) -> None:
        if not any(path.resolve().is_relative_to(root.resolve()) for root in roots):
            variable = "CY_LLM_MODEL_ROOTS" if field == "modelPath" else "CY_LLM_ADAPTERS_ROOT"
            description = f"The path lies outside the folders that may be named here (operators: {variable})"
            raise InvalidRequest.of("invalid_path", field, description)


def _require_hub_name(name: str, field: str) -> None:
    if not _HUB_NAME.match(name) or ".." in name:
        description = "Must be a folder, a name on the model hub (owner/name), or pypi:NAME"
        raise InvalidRequest.of("invalid_value", field, description)


def _invalid(error: ConfigError) -> InvalidRequest:
    """The words of the model file's checks, with the key that they name as the field."""
    named = re.search(r"(?:key|engine_args:|its alias) '([^']*)'", str(error))
    return InvalidRequest.of("invalid_value", named.group(1) if named else "", str(error))
