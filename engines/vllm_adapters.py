"""LoRA adapter folders as vLLM's ``LoRARequest`` objects."""

from pathlib import Path

from vllm.lora.request import LoRARequest

from engines.errors import InvalidRequest
from engines.registry import ModelSpec


class AdapterTable:
    """Gives each adapter folder one integer id, for as long as the engine lives.

    vLLM caches weights by id: an id must never come to mean other weights, so ids are
    only handed out, never reused.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._known: dict[str, LoRARequest] = {}

    def resolve(self, path: str | None) -> LoRARequest | None:
        """Return the adapter at ``path``, the model's own for None. Raises ``InvalidRequest``."""
        path = path or self._spec.adapter_path
        if path is None:
            return None
        if not self._spec.takes_adapters:
            raise InvalidRequest(
                "adapter_not_supported", "adapter", f"Model {self._spec.id!r} takes no adapters (enable_lora is off)"
            )
        if path not in self._known:
            if not (Path(path) / "adapter_config.json").is_file():
                raise InvalidRequest(
                    "adapter_not_found", "adapter", f"No adapter of that name exists for model {self._spec.id!r}"
                )
            number = len(self._known) + 1
            self._known[path] = LoRARequest(f"adapter-{number}", number, path)
        return self._known[path]
