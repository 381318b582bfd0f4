"""What the views of one process share: connections, the hub, the registry, the keys."""

from dataclasses import dataclass
from typing import cast

import redis
from flask import current_app

from engines.registry import Registry, load_registry
from settings import Settings
from store import db
from store.adapters import AdapterStore
from store.hub import Hub
from store.jobs import JobStore
from store.keys import KeyRing
from store.models import now
from store.presence import Presence
from store.redis import connect
from store.requests import RequestStore
from tasks.backlog import Backlog
from webapp.connection import Lifecycle
from webapp.limiter import Limiter
from webapp.supervisor import Supervisor

_KEY = "cy_llm"


@dataclass(frozen=True)
class Services:
    """Made once per process, by ``create_app``; every part may be used from any thread."""

    settings: Settings
    registry: Registry
    redis: redis.Redis
    hub: Hub
    presence: Presence
    requests: RequestStore
    keys: KeyRing
    backlog: Backlog
    supervisor: Supervisor
    lifecycle: Lifecycle
    limiter: Limiter
    jobs: JobStore
    adapters: AdapterStore

    @classmethod
    def create(cls, settings: Settings) -> "Services":
        client = connect(settings.redis_url)
        requests = RequestStore(client, settings.stream_ttl)
        presence, backlog = Presence(client), Backlog(client)
        sessions = db.sessions(db.connect(settings.database_url))
        return cls(
            settings=settings,
            registry=load_registry(settings.config_path, settings.engine),
            redis=client,
            hub=Hub(settings.redis_url, client),
            presence=presence,
            requests=requests,
            backlog=backlog,
            supervisor=Supervisor(client, requests, presence, backlog, settings.stream_ttl),
            lifecycle=Lifecycle(),
            limiter=Limiter(client, settings.redis_url, settings.requests_per_minute, settings.streams_per_key),
            keys=KeyRing(settings, sessions),
            jobs=JobStore(sessions),
            adapters=AdapterStore(sessions, settings.adapters_root),
        )

    def close(self) -> None:
        """End the hub's thread and the connections; for tests, a process just exits."""
        self.supervisor.close()
        self.limiter.close()
        self.hub.close()
        self.redis.close()

    def install(self, app: object) -> None:
        app.extensions[_KEY] = self  # type: ignore[attr-defined]


def services() -> Services:
    """Return the services of the current application."""
    return cast(Services, current_app.extensions[_KEY])


#: When this process began.
STARTED = now()
