"""Whose a call is, and what they may do."""

import time
from dataclasses import dataclass, field
from enum import Enum

from store.quota import Quota
from store.tenant import DEFAULT_TENANT


class Scope(Enum):
    """What a key may do."""

    #: Inference, models, health and adapters, through every face.
    INFERENCE = "inference"
    #: The OpenAI-compatible API alone.
    OPENAI = "openai"
    #: Start, watch and cancel training.
    TRAINING = "training"
    #: Everything an operator does.
    ADMIN = "admin"


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True)
class Bounds:
    """What a key, or all keys of a tenant together, may use; None is what the installation's settings say."""

    requests_per_minute: int | None = None
    #: Requests that run at once.
    streams: int | None = None
    #: Tokens of prompts and answers together.
    tokens_per_minute: int | None = None
    quota: Quota | None = None


@dataclass(frozen=True)
class Principal:
    """Whose request it is. ``id`` is stable and never the key itself."""

    id: str
    name: str
    scopes: frozenset[Scope] = field(default=ALL_SCOPES)
    #: Whose things it sees and makes.
    tenant: str = DEFAULT_TENANT
    #: Whether its key is a row of the database, which can be revoked.
    revocable: bool = False
    #: Names of the models and adapters that it may ask for; None is all.
    models: frozenset[str] | None = None
    bounds: Bounds = Bounds()
    tenant_bounds: Bounds = Bounds()
    #: When it ends. Unix time, seconds; None is never.
    expires_at: float | None = None

    def has_scope(self, scope: Scope) -> bool:
        return scope in self.scopes

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and time.time() >= self.expires_at


#: Everybody, while no key of any kind is configured.
ANONYMOUS = Principal("anonymous", "anonymous")
