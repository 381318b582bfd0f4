"""Batches as clients make and see them; ``webapp.openai.batches`` runs them."""

import logging

import redis
from redis.exceptions import RedisError

from services.access import Access
from services.errors import BatchNotFound, InvalidRequest
from services.files import FileService
from services.limits import Limits
from settings import Settings
from store.files.batch_folder import BatchFolder
from store.principal import Principal
from store.sql.background_jobs import BackgroundJobStore
from store.sql.batches import BatchStatus, BatchStore, new_batch_id
from store.sql.file_tables import Batch
from tasks.broker import submit
from tasks.broker.names import BATCHES

log = logging.getLogger(__name__)

#: What a batch may call.
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
#: The only window that OpenAI has. Seconds.
WINDOWS = {"24h": 86_400.0}
#: What a file must have been uploaded for.
_PURPOSE = "batch"
#: Batches that a tenant may have open.
_MAX_OPEN = 100
#: Largest input file. Bytes; OpenAI's.
_MAX_BYTES = 200 * 1024 * 1024


class BatchService:
    """The batches of all tenants."""

    def __init__(
        self,
        settings: Settings,
        store: BatchStore,
        jobs: BackgroundJobStore,
        files: FileService,
        access: Access,
        limits: Limits,
        client: redis.Redis,
    ) -> None:
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._files = files
        self._access = access
        self._limits = limits
        self._redis = client

    def create(
        self,
        principal: Principal,
        input_file_id: str,
        endpoint: str,
        window: str,
        labels: dict[str, str],
        keep_seconds: int | None,
    ) -> Batch:
        """Begin a batch; its file is looked at later. Raises ``InvalidRequest``."""
        self._access.require_active(principal)
        self._limits.count_request(principal)
        file, path = self._files.input(principal, input_file_id, _PURPOSE, "input_file_id")
        if file.bytes > _MAX_BYTES:
            description = f"The file has {file.bytes} bytes; a batch's may have {_MAX_BYTES}"
            raise InvalidRequest.of("file_too_large", "input_file_id", description)
        if self._store.count_open(principal.tenant) >= _MAX_OPEN:
            raise InvalidRequest.of(
                "too_many_batches", "", f"{_MAX_OPEN} batches have not ended yet: wait, or cancel some"
            )
        batch_id = new_batch_id()
        folder = BatchFolder(self._settings.files_root, batch_id)
        try:
            self._files.link_or_copy(path, folder.input, "input_file_id")
            batch = self._store.create(
                batch_id,
                tenant=principal.tenant,
                owner=principal.id,
                endpoint=endpoint,
                input_file_id=file.id,
                labels=labels,
                window=WINDOWS[window],
                keep_seconds=keep_seconds,
            )
        except BaseException:
            folder.remove()
            raise
        self._wake()
        return batch

    def find(self, principal: Principal, batch_id: str) -> Batch:
        """Return a batch that the principal sees. Raises ``BatchNotFound`` for any other."""
        batch = self._store.load(batch_id)
        if batch is None or not self._access.can_see(principal, batch.tenant):
            raise BatchNotFound(batch_id)
        return batch

    def page(self, principal: Principal, limit: int, after: str | None) -> tuple[list[Batch], bool]:
        """Return a page of the batches that the principal sees, newest first, and whether more follow."""
        return self._store.page(self._access.visible_tenant(principal), limit, after)

    def cancel(self, principal: Principal, batch_id: str) -> Batch:
        """End a batch; what was answered stays. Raises ``BatchNotFound``, ``InvalidRequest`` where it is too late."""
        batch = self.find(principal, batch_id)
        ended = (BatchStatus.CANCELLING.value, BatchStatus.CANCELLED.value)
        if not self._store.cancel(batch_id) and self.find(principal, batch_id).status not in ended:
            status = self.find(principal, batch_id).status
            raise InvalidRequest.of("wrong_state", "status", f"A batch that is '{status}' cannot be cancelled")
        self._wake()
        return self.find(principal, batch.id)

    def _wake(self) -> None:
        """Let a ``cpu-work`` worker look at the batches at once; by itself it does so every few seconds."""
        job = self._jobs.create_periodic(BATCHES, 1.0)
        if job is None:
            return
        try:
            submit.enqueue_background(self._redis, job.id)
        except RedisError as error:
            log.warning("The batch cannot be sent now, a worker will find it: %s", error)
