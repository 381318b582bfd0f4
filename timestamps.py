"""Times as the interface document writes them, for every face and the command line."""

from datetime import UTC, datetime, timedelta


def timestamp(moment: datetime | None) -> str | None:
    """``2025-01-21T10:00:00Z``; None for None."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment is not None else None


def duration(elapsed: timedelta) -> str:
    """``1h0m0s``."""
    minutes, seconds = divmod(int(elapsed.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s"


def unix_timestamp(seconds: float) -> str | None:
    """The same for a Unix time."""
    return timestamp(datetime.fromtimestamp(seconds, UTC))
