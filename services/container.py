"""Every service of one process, made once, at its start. All may be used from any thread."""

from dataclasses import dataclass

import redis

from engines.catalogue import merge
from engines.registry import load_registry
from services.access import Access
from services.adapters import AdapterService
from services.batches import BatchService
from services.files import FileService
from services.health import HealthService
from services.idempotency import Idempotency
from services.inference.admission import Admission
from services.inference.cancellation import Cancellation
from services.inference.failover import Failover
from services.inference.routing import Router
from services.inference.service import InferenceService
from services.key_watch import KeyWatch
from services.keys import KeyService
from services.lifecycle import Lifecycle
from services.limit_holders import DefaultBounds
from services.limits import Limits
from services.model_changes import ModelChanges
from services.models import ModelCatalog
from services.responses import ResponsesService
from services.system_state import SystemState
from services.token_limits import TokenLimits
from services.training.checks import TrainingChecks
from services.training.dataset_check import DatasetChecker
from services.training.service import TrainingService
from services.training.sources import DatasetSources
from services.uploads import UploadService
from services.usage import UsageService
from settings import Settings
from store.files.files import FileStore
from store.files.uploads import UploadStore
from store.installation import InstallationClaim
from store.model_revision import RevisionWatcher
from store.redis.client import connect
from store.redis.presence import PresenceReader
from store.redis.request_records import RequestStore
from store.redis.responses import ResponseStore
from store.sql import db
from store.sql.adapters import AdapterStore
from store.sql.api_keys import ApiKeyStore
from store.sql.authenticator import ApiKeyAuthenticator
from store.sql.background_jobs import BackgroundJobStore
from store.sql.batches import BatchStore
from store.sql.job_counts import JobCounts
from store.sql.jobs import JobStore
from store.sql.models import ModelStore
from store.sql.tenants import TenantStore
from store.sql.usage import UsageStore
from store.token_budget.budget import TokenBudget
from store.token_log.hub import Hub
from tasks.broker.queue_depth import QueueDepth


@dataclass(frozen=True)
class Services:
    """What faces call."""

    settings: Settings
    lifecycle: Lifecycle
    access: Access
    keys: KeyService
    key_watch: KeyWatch
    usage: UsageService
    limits: Limits
    token_limits: TokenLimits
    models: ModelCatalog
    model_changes: ModelChanges
    model_watcher: RevisionWatcher
    adapters: AdapterService
    inference: InferenceService
    responses: ResponsesService
    training: TrainingService
    files: FileService
    uploads: UploadService
    batches: BatchService
    health: HealthService
    system_state: SystemState
    client: redis.Redis
    claim: InstallationClaim

    @classmethod
    def create(cls, settings: Settings) -> "Services":
        """Raises ``ConfigError`` for a model file that cannot be used, ``PrefixTakenError``."""
        client = connect(settings.redis_url)
        sessions = db.sessions(db.connect(settings.database_url))
        claim = InstallationClaim(client, sessions)
        claim.hold()
        presence, queue_depth = PresenceReader(client), QueueDepth(client)
        lifecycle = Lifecycle()
        authenticator, key_store = ApiKeyAuthenticator(settings, sessions), ApiKeyStore(sessions)
        access = Access(authenticator)
        default, usage_store = DefaultBounds.of(settings), UsageStore(sessions)
        limits = Limits(client, default)
        token_limits = TokenLimits(TokenBudget(client), usage_store, default)
        adapter_store = AdapterStore(sessions, settings.adapters_root)
        adapters = AdapterService(adapter_store, access)
        model_store, jobs = ModelStore(sessions), JobStore(sessions)
        models = ModelCatalog(
            lambda: load_registry(settings.config_path, **settings.registry_options),
            lambda file, state: merge(
                file,
                state.added,
                state.overrides,
                settings.config_path.parent,
                settings.models_root,
                settings.engine,
            ),
            model_store,
            client,
            presence,
            adapters,
        )
        key_watch = KeyWatch(client, authenticator, key_store)
        watcher = RevisionWatcher(client, models.refresh, beside=key_watch.look)
        watcher.start(models.state.revision)
        idempotency = Idempotency(client)
        file_store = FileStore(sessions, settings.files_root)
        files = FileService(settings, file_store, access, limits)
        checks = TrainingChecks(
            settings, models, adapters, jobs, access, DatasetChecker(settings, client), DatasetSources(settings, files)
        )
        return cls(
            settings=settings,
            lifecycle=lifecycle,
            access=access,
            keys=KeyService(key_store, TenantStore(sessions), client),
            key_watch=key_watch,
            usage=UsageService(usage_store, key_store, authenticator, access),
            limits=limits,
            token_limits=token_limits,
            models=models,
            model_changes=ModelChanges(settings, models, model_store, client, presence, adapter_store, jobs),
            model_watcher=watcher,
            adapters=adapters,
            inference=_inference(
                settings,
                client,
                presence,
                queue_depth,
                lifecycle,
                access,
                limits,
                token_limits,
                models,
                adapters,
                idempotency,
            ),
            responses=ResponsesService(
                ResponseStore(client, settings.response_ttl, settings.max_responses),
                access,
                client,
                RequestStore(client, settings.stream_ttl),
            ),
            training=TrainingService(
                client, access, limits, checks, jobs, files, idempotency, lifecycle, settings.keepalive
            ),
            files=files,
            batches=BatchService(
                settings, BatchStore(sessions), BackgroundJobStore(sessions), files, access, limits, client
            ),
            uploads=UploadService(UploadStore(sessions, file_store), files, access, limits),
            health=HealthService(client, presence, lifecycle, settings.max_queue_size),
            system_state=SystemState(client, presence, JobCounts(sessions)),
            client=client,
            claim=claim,
        )

    def close(self) -> None:
        """End the threads and the connections; for tests and servers that stop, a process just exits."""
        self.claim.close()
        self.model_watcher.close()
        self.key_watch.close()
        self.inference.failover.close()
        self.limits.close()
        self.token_limits.close()
        self.inference.hub.close()
        self.client.close()


def _inference(
    settings: Settings,
    client: redis.Redis,
    presence: PresenceReader,
    queue_depth: QueueDepth,
    lifecycle: Lifecycle,
    access: Access,
    limits: Limits,
    token_limits: TokenLimits,
    models: ModelCatalog,
    adapters: AdapterService,
    idempotency: Idempotency,
) -> InferenceService:
    hub = Hub(settings.redis_url, client)
    requests = RequestStore(client, settings.stream_ttl)
    router = Router(presence, queue_depth, settings.max_queue_size)
    return InferenceService(
        client=client,
        hub=hub,
        requests=requests,
        access=access,
        limits=limits,
        token_limits=token_limits,
        lifecycle=lifecycle,
        admission=Admission(
            access,
            models,
            adapters,
            router,
            idempotency,
            requests,
            settings.request_timeout,
            settings.stream_ttl,
            token_limits,
        ),
        idempotency=idempotency,
        failover=Failover(
            client, requests, presence, queue_depth, settings.stream_ttl, models.is_unloaded, settings.swap_wait
        ),
        cancellation=Cancellation(client, hub, settings.stream_ttl),
        keepalive=settings.keepalive,
    )
