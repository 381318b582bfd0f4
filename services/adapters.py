"""Adapters: which one a name means to whom, and who may change that."""

import json

from engines.base import ADAPTER_CONFIG
from engines.model_spec import ModelSpec
from services.access import Access
from services.errors import AdapterNotFound, InvalidRequest
from services.safe_paths import resolve_inside
from store.principal import Principal
from store.sql.adapters import FINE_TUNED, AdapterStore, parse_reference, reference
from store.sql.tables import Adapter, TrainingJob
from text import decode


class AdapterService:
    """The adapters of all tenants, each tenant's apart."""

    def __init__(self, store: AdapterStore, access: Access) -> None:
        self._store = store
        self._access = access

    @property
    def root(self) -> str:
        """The folder that all adapters lie in."""
        return str(self._store.root)

    def versions(self, principal: Principal) -> list[tuple[Adapter, bool]]:
        """Return every version that the principal sees, and whether its bare name means it."""
        aliases = self._store.aliases()
        found = self._store.all(tenant=self._access.visible_tenant(principal))
        return [(adapter, aliases.get((adapter.tenant, adapter.name)) == adapter.version) for adapter in found]

    def current(self, principal: Principal, models: list[str]) -> list[Adapter]:
        """Return what bare names mean to the principal's tenant, for these models."""
        return self._store.current(models, principal.tenant)

    def checkpoints(self, principal: Principal) -> list[Adapter]:
        """Return the checkpoints that can be asked by the principal's tenant, newest first."""
        return self._store.checkpoints(principal.tenant)

    def checkpoints_of(self, job: TrainingJob) -> list[Adapter]:
        """Return the checkpoints of a job that can be asked, newest first."""
        return self._store.checkpoints(job.tenant, job.id)

    def resolve(self, principal: Principal, name: str) -> Adapter | None:
        """Return what ``name`` or ``name@version`` means to the principal's tenant."""
        return self._store.resolve(name, principal.tenant)

    def folder_of(self, principal: Principal, spec: ModelSpec, name: str) -> tuple[str, str]:
        """Return the folder that a name means now (a request ends on the version that it began on), and its reference.

        What is no adapter's name is a path inside the adapters root, which its worker judges; a folder
        that is another tenant's adapter is refused here. Raises ``InvalidRequest``.
        """
        adapter = self._store.resolve(name, principal.tenant)
        if adapter is None:
            if self._belongs_to_another(principal, name):
                description = f"No adapter of that name exists for model '{spec.id}'"
                raise InvalidRequest.of("adapter_not_found", "adapter", description)
            return name, name
        if adapter.base_model != spec.id:
            description = f"Adapter '{name}' belongs to model '{adapter.base_model}', not to '{spec.id}'"
            raise InvalidRequest.of("adapter_wrong_model", "adapter", description)
        return adapter.path, reference(adapter)

    def base_of_folder(self, principal: Principal, name: str) -> str | None:
        """Return what a hand-placed adapter's own configuration calls its base model ('' where it names none).

        None where ``name`` is no adapter's folder inside the root, or another tenant's.
        """
        try:
            folder = resolve_inside(name, [self._store.root], "model")
            config = json.loads(decode((folder / ADAPTER_CONFIG).read_bytes()))
        except (InvalidRequest, OSError, ValueError):
            return None
        if not isinstance(config, dict) or self._belongs_to_another(principal, name):
            return None
        return str(config.get("base_model_name_or_path") or "")

    def delete(self, principal: Principal, ref: str) -> list[str]:
        """Delete ``name@version``, or all of ``name``; return their references. Raises ``AdapterNotFound``."""
        found = self._store.resolve(ref, principal.tenant) if ref.startswith(FINE_TUNED) else None
        parsed = (found.name, found.version) if found is not None else parse_reference(ref)
        deleted = self._store.delete(*parsed, principal.tenant) if parsed else []
        if not deleted:
            raise AdapterNotFound(ref)
        return [reference(adapter) for adapter in deleted]

    def promote(self, principal: Principal, name: str, version: int) -> None:
        """Let a name mean a version. Raises ``AdapterNotFound``."""
        if not self._store.promote(name, version, principal.tenant):
            raise AdapterNotFound(f"{name}@{version}")

    def rollback(self, principal: Principal, name: str) -> int:
        """Let a name mean what it meant before; return that version. Raises ``AdapterNotFound``."""
        version = self._store.rollback(name, principal.tenant)
        if version is None:
            raise AdapterNotFound(f"{name}, an earlier version")
        return version

    def _belongs_to_another(self, principal: Principal, path: str) -> bool:
        owner = self._store.tenant_of_path(path)
        return owner is not None and owner != principal.tenant
