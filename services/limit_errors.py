"""Refusals of requests that go beyond what a key, or its tenant, may use."""

import math
import time
from datetime import datetime

from services.errors import ServiceError
from store.token_log.outcomes import Code, Detail
from timestamps import timestamp


class RateLimited(ServiceError):
    """The key has used what it may."""

    code = Code.RATE_LIMITED


class TooManyRequests(RateLimited):
    """A key, or its tenant, has had its requests of this minute. ``reset`` is a Unix time in seconds."""

    def __init__(self, holder: str, per_minute: int, reset: float) -> None:
        self.per_minute, self.reset = per_minute, reset
        wait = max(1, math.ceil(reset - time.time()))
        description = f"{holder} may send {per_minute} requests a minute; try again in {wait} s"
        super().__init__(description, [Detail("requests_per_minute", "", description)], wait)


class TooManyStreams(RateLimited):
    """A key, its tenant, or a socket has as many requests running as it may."""

    def __init__(self, holder: str, limit: int) -> None:
        description = f"{holder} may have {limit} requests running at once"
        super().__init__(description, [Detail("concurrent_streams", "", description)], 1)


class TooManyTokens(RateLimited):
    """A key, or its tenant, has used its tokens of this minute, or holds them for requests that run."""

    def __init__(self, holder: str, per_minute: int, used: int, reserved: int, needed: int, wait: float) -> None:
        seconds = max(1, math.ceil(wait))
        description = (
            f"{holder} may use {per_minute} tokens a minute: {used} are used, {reserved} are set aside for requests "
            f"that run, and this one may need {needed}; try again in {seconds} s, or ask for a shorter answer"
        )
        super().__init__(description, [Detail("tokens_per_minute", "", description)], seconds)
        self.per_minute, self.remaining, self.wait = per_minute, max(0, per_minute - used - reserved), seconds


class TokensInUse(RateLimited):
    """What is left of a quota is set aside for requests that run; when they end some of it may be free again."""

    def __init__(self, holder: str, quota: int, used: int, reserved: int, needed: int) -> None:
        description = (
            f"{holder} has used {used} tokens of {quota}, {reserved} more are set aside for requests that run, and "
            f"this one may need {needed}; try again when those have ended, or ask for a shorter answer"
        )
        super().__init__(description, [Detail("tokens_in_use", "", description)], 2)


class QuotaSpent(RateLimited):
    """A key, or its tenant, has used its tokens of this day, or month. A retry changes nothing until it renews."""

    worth_retrying = False

    def __init__(self, holder: str, allowed: str, quota: int, used: int, needed: int, renews: datetime) -> None:
        left = max(0, quota - used)
        what = "none is left" if not left else f"{left} are left, and this request may need {needed}"
        description = (
            f"{holder} may use {allowed} tokens, and has used {used}: {what}. The quota renews at {timestamp(renews)} "
            "(UTC's clock)"
        )
        wait = max(1, math.ceil(renews.timestamp() - time.time()))
        super().__init__(description, [Detail("token_quota", "", description)], wait)
