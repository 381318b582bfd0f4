"""Every Redis key and channel, in one place. All begin with ``cy:``."""

#: Sorted set: worker instance -> Redis time in ms of its last renewal.
WORKERS = "cy:workers"

#: Channel that every process is subscribed to, so that its subscription never is empty.
HUB_CHANNEL = b"cy:hub"

#: Channel on which every worker hears what to stop.
CONTROL_CHANNEL = b"cy:control"

#: List (JSON): data sets that a training worker shall check.
CHECKS = "cy:train:checks"

#: String, expires: there while a training worker takes such requests.
CHECKERS = "cy:train:checkers"


def check_answer(check_id: str) -> str:
    """List (JSON, one element), expires: what a training worker found."""
    return f"cy:train:check:{check_id}"


def worker(instance_id: str) -> str:
    """String (JSON), expires: what one living worker says of itself."""
    return f"cy:worker:{instance_id}"


def request(request_id: str) -> str:
    """String (JSON), expires: the request as the front door accepted it."""
    return f"cy:req:{request_id}"


def log(request_id: str) -> str:
    """Stream, expires: the token log."""
    return f"cy:log:{request_id}"


def attempts(request_id: str) -> str:
    """Hash, expires: ``n`` is the attempt in charge, ``kills`` how many workers died of the request."""
    return f"cy:att:{request_id}"


def idempotency(digest: str) -> str:
    """String (JSON), expires: the request that an idempotency key began."""
    return f"cy:idem:{digest}"


def streams(key_id: str) -> str:
    """Sorted set: the open streams of an API key -> Redis time in ms at which the lease ends."""
    return f"cy:streams:{key_id}"


def log_channel(request_id: str) -> str:
    """Pub/sub channel: every entry of the token log as it is appended."""
    return f"cy:log:{request_id}"
