"""LoRA adapter folders as vLLM's ``LoRARequest`` objects."""

import logging

from vllm.engine.protocol import EngineClient
from vllm.lora.request import LoRARequest

from engines.base import is_adapter_folder
from engines.errors import InvalidRequest
from engines.registry import ModelSpec
from engines.vllm.internals import EngineDeadError

log = logging.getLogger(__name__)


class AdapterTable:
    """Gives each adapter folder one integer id, for as long as the engine lives.

    vLLM caches weights by id: an id must never come to mean other weights, so ids are
    only handed out, never reused.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._known: dict[str, LoRARequest] = {}
        self._loaded: set[int] = set()

    async def loaded(self, client: EngineClient, path: str | None) -> LoRARequest | None:
        """As :meth:`resolve`; on its first use the adapter is loaded, alone.

        A broken adapter that first shows in a step of the batch would end the whole engine.
        """
        adapter = self.resolve(path)
        if adapter is None or adapter.lora_int_id in self._loaded:
            return adapter
        try:
            await client.add_lora(adapter)
        except EngineDeadError:
            raise
        except Exception as error:
            log.warning("Adapter cannot be loaded: %s", error, extra={"model": self._spec.id})
            raise InvalidRequest(
                "adapter_broken", "adapter", f"The adapter cannot be loaded into model {self._spec.id!r}"
            ) from error
        self._loaded.add(adapter.lora_int_id)
        return adapter

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
            if not is_adapter_folder(path):
                raise InvalidRequest(
                    "adapter_not_found", "adapter", f"No adapter of that name exists for model {self._spec.id!r}"
                )
            number = len(self._known) + 1
            self._known[path] = LoRARequest(f"adapter-{number}", number, path)
        return self._known[path]
