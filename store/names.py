"""Every Redis key and channel, in one place. All begin with ``cy:``."""

#: Sorted set: worker incarnation -> Redis time in ms of its last sign of life.
WORKERS = "cy:workers"

#: Channel that every process is subscribed to, so that its subscription never is empty.
HUB_CHANNEL = b"cy:hub"


def worker(incarnation: str) -> str:
    """String (JSON), expires: what one living worker says of itself."""
    return f"cy:worker:{incarnation}"


def request(request_id: str) -> str:
    """String (JSON), expires: the request as the front door accepted it."""
    return f"cy:req:{request_id}"


def log(request_id: str) -> str:
    """Stream, expires: the token log."""
    return f"cy:log:{request_id}"


def log_channel(request_id: str) -> str:
    """Pub/sub channel: every entry of the token log as it is appended."""
    return f"cy:log:{request_id}"
