"""Every Redis key and channel, in one place. All begin with ``CY_LLM_REDIS_PREFIX`` (empty by default) and ``cy:``.

Channels know no database numbers, so that two installations on one Redis need prefixes of their own.
"""

import functools

from settings import Settings


@functools.cache
def prefix() -> str:
    """What this installation's keys begin with: a process belongs to one installation."""
    return Settings.from_env().redis_prefix


@functools.cache
def _fixed(name: str) -> str:
    return f"{prefix()}cy:{name}"


def installation() -> str:
    """String, expires: the id of the installation that uses this prefix."""
    return _fixed("installation")


def workers() -> str:
    """Sorted set: worker instance -> Redis time in ms of its last renewal."""
    return _fixed("workers")


def hub_channel() -> bytes:
    """Channel that every process is subscribed to, so that its subscription never is empty."""
    return _fixed("hub").encode()


def control_channel() -> str:
    """Channel on which every worker hears what to stop."""
    return _fixed("control")


def metrics_targets() -> str:
    """Sorted set: processes that show metrics -> Redis time in ms at which they count no more."""
    return _fixed("metrics")


def checks() -> str:
    """List (JSON): data sets that a training worker shall check."""
    return _fixed("train:checks")


def checkers() -> str:
    """String, expires: there while a training worker takes such requests."""
    return _fixed("train:checkers")


def check_answer(check_id: str) -> str:
    """List (JSON, one element), expires: what a training worker found."""
    return f"{prefix()}cy:train:check:{check_id}"


def models_revision() -> str:
    """String: number of the last change of the models (``store.model_revision``)."""
    return _fixed("models:revision")


def keys_revision() -> str:
    """String: how often API keys and tenants were changed (``services.key_watch``)."""
    return _fixed("keys:revision")


def bills() -> str:
    """Stream: what requests used, until it is booked in SQL (``store.usage_bill``)."""
    return _fixed("bills")


def swap_claim(model: str) -> str:
    """Which worker is about to load a model that somebody waits for."""
    return f"{prefix()}models:swap:{model}"


def worker(instance_id: str) -> str:
    """String (JSON), expires: what one living worker says of itself."""
    return f"{prefix()}cy:worker:{instance_id}"


def request(request_id: str) -> str:
    """String (JSON), expires: the request as the front door accepted it."""
    return f"{prefix()}cy:req:{request_id}"


def log(request_id: str) -> str:
    """Stream, expires: the token log."""
    return f"{prefix()}cy:log:{request_id}"


def attempts(request_id: str) -> str:
    """Hash, expires: ``n`` is the attempt in charge, ``kills`` how many workers died of the request."""
    return f"{prefix()}cy:att:{request_id}"


def idempotency(digest: str) -> str:
    """String (JSON), expires: the request that an idempotency key began."""
    return f"{prefix()}cy:idem:{digest}"


def streams(key_id: str) -> str:
    """Sorted set: the open streams of an API key -> Redis time in ms at which the lease ends."""
    return f"{prefix()}cy:streams:{key_id}"


def tokens(holder: str) -> str:
    """Hash, expires: what a key, or a tenant, has used of its token limits (``store.token_budget``)."""
    return f"{prefix()}cy:tokens:{holder}"


def token_reserves(holder: str) -> str:
    """Sorted set, expires: requests that tokens are set aside for -> Redis time in ms at which that lapses."""
    return f"{prefix()}cy:tokens:{holder}:open"


def log_channel(request_id: str) -> str:
    """Pub/sub channel: every entry of the token log as it is appended."""
    return f"{prefix()}cy:log:{request_id}"


def response(response_id: str) -> str:
    """Hash, expires: one response (``store.redis.responses``)."""
    return f"{prefix()}cy:resp:{response_id}"


def responses_of(tenant: str) -> str:
    """Sorted set, expires: a tenant's responses -> Unix time of their beginning."""
    return f"{prefix()}cy:resps:{tenant}"
