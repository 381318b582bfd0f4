"""Tokens that a key, and all keys of a tenant, may use: in a minute, and in the period of their quota.

Before a request runs, its prompt (estimated) and the most that its answer may have are set aside; when it ends, what it
used is counted in their place, by the script that ends it. What was used of a quota is the books' number: the count in
Redis is set right from SQL once a minute, and before anybody is refused.
"""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from cachetools import TTLCache
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from services.limit_errors import QuotaSpent, TokensInUse, TooManyTokens
from services.limit_holders import DefaultBounds, Holder, holders
from store.principal import Principal
from store.redis.request_records import RequestRecord
from store.token_budget.budget import MINUTE, Count, Refusal, TokenBudget, TokenLimit, Unknown
from store.token_budget.settlement import FIELD

log = logging.getLogger(__name__)

#: Beyond its deadline a reserve is held so long for a request that nobody ends. Seconds.
_GRACE_SECONDS = 60.0
#: The count of a quota is set right from the books once in so long. Seconds.
_CORRECT_SECONDS = 60.0
#: How often one process asks whether that time has come.
_LOOK_SECONDS = 5.0


class Books(Protocol):
    """What was used, as it is booked."""

    def tokens_since(self, moment: datetime, *, key: str | None, tenant: str | None) -> int:
        """Return prompt and completion tokens of the requests of a key, or a tenant, that ended since then."""
        ...


@dataclass(frozen=True)
class TokenAllowance:
    """What a key may still use in this minute."""

    limit: int
    remaining: int
    #: When it is all there again. Unix time, seconds.
    reset: float


@dataclass(frozen=True)
class HolderUse:
    """What a key, or a tenant, has used of its limits."""

    holder: Holder
    count: Count
    #: Begin and end of the period of its quota.
    period: tuple[datetime, datetime] | None


class TokenLimits:
    """The token limits of one process's requests; the counts are everybody's."""

    def __init__(self, budget: TokenBudget, books: Books, default: DefaultBounds) -> None:
        self._budget = budget
        self._books = books
        self._default = default
        #: Holders of whose count this process asked lately how old it is.
        self._looked_at: TTLCache[str, bool] = TTLCache(4096, _LOOK_SECONDS)
        self._lock = threading.Lock()
        self._correcting = ThreadPoolExecutor(1, "token-books")

    def close(self) -> None:
        self._correcting.shutdown(cancel_futures=True)

    def measured(self, principal: Principal) -> tuple[Holder, ...]:
        """Return those whose limits measure a principal's tokens."""
        own, common = principal.bounds, principal.tenant_bounds
        if not (
            self._default.tokens_per_minute
            or own.tokens_per_minute
            or own.quota
            or common.tokens_per_minute
            or common.quota
        ):
            return ()
        return tuple(holder for holder in holders(principal, self._default) if holder.measures_tokens)

    @contextmanager
    def reserved(self, principal: Principal, record: RequestRecord) -> Iterator[TokenAllowance | None]:
        """Set a request's tokens aside; they are given back where the block, which sends it, fails.

        Yields what is left of the minute. Raises ``TooManyTokens``, ``QuotaSpent``, ``TokensInUse``.
        """
        wanted = record.payload.get(FIELD)
        # Those whose reserve is settled at the end, and no others: else it would be held until it lapses.
        measured = tuple(h for h in self.measured(principal) if wanted and h.id in wanted["holders"])
        if not (measured and wanted):
            yield None
            return
        allowance = self._reserve(principal, measured, record, wanted["tokens"], wanted["minute"])
        try:
            yield allowance
        except BaseException:
            self._give_back(record)
            raise

    def used(self, principal: Principal) -> list[HolderUse]:
        """Return what the principal's key, and its tenant, have used of their token limits."""
        found = []
        for holder in self.measured(principal):
            limit = self._limit(holder, counts_in_minute=True)
            if limit.quota:
                self._correct(principal, holder, limit)
            count = self._budget.count(limit) or Count()
            found.append(HolderUse(holder, count, holder.quota.span(datetime.now(UTC)) if holder.quota else None))
        return found

    def _reserve(
        self, principal: Principal, measured: tuple[Holder, ...], record: RequestRecord, tokens: int, in_minute: bool
    ) -> TokenAllowance | None:
        limits = [self._limit(holder, in_minute) for holder in measured]
        lease = max(0.0, record.deadline - time.time()) + _GRACE_SECONDS
        corrected: set[str] = set()
        while True:
            found = self._budget.reserve(limits, record.id, tokens, lease)
            if isinstance(found, list):
                self._keep_right(principal, measured, limits)
                return _allowance(limits, found, tokens)
            holder = next(each for each in measured if each.id == found.limit.holder)
            # Nobody is refused by a count that the books do not know.
            if isinstance(found, Unknown) or (found.kind != MINUTE and holder.id not in corrected):
                corrected.add(holder.id)
                self._correct(principal, holder, found.limit)
                continue
            raise _refused(holder, found, tokens)

    def _limit(self, holder: Holder, counts_in_minute: bool) -> TokenLimit:
        per_minute = holder.tokens_per_minute if counts_in_minute else 0
        if holder.quota is None:
            return TokenLimit(holder.id, per_minute, 0, 0, 2**33)
        moment = datetime.now(UTC)
        begins, ends = holder.quota.counts_since(moment), holder.quota.span(moment)[1]
        return TokenLimit(
            holder.id, per_minute, holder.quota.tokens, int(begins.timestamp() * 1000), int(ends.timestamp())
        )

    def _keep_right(self, principal: Principal, measured: tuple[Holder, ...], limits: list[TokenLimit]) -> None:
        """Set old counts right, behind the request's back: a month's sum may take its time."""
        for holder, limit in zip(measured, limits, strict=True):
            if not limit.quota:
                continue
            with self._lock:
                lately = holder.id in self._looked_at
                self._looked_at.setdefault(holder.id, True)
            if not lately:
                self._correcting.submit(self._correct_if_old, principal, holder, limit)

    def _correct_if_old(self, principal: Principal, holder: Holder, limit: TokenLimit) -> None:
        try:
            if self._budget.checked_ago(limit) > _CORRECT_SECONDS:
                self._correct(principal, holder, limit)
        except (RedisError, OSError, SQLAlchemyError) as error:
            log.warning("The count of a quota could not be compared with the books: %s", error.__class__.__name__)

    def _correct(self, principal: Principal, holder: Holder, limit: TokenLimit) -> None:
        before = self._budget.used_before(limit)
        of_key = holder.id == principal.id
        booked = self._books.tokens_since(
            datetime.fromtimestamp(limit.begins / 1000, UTC),
            key=principal.id if of_key else None,
            tenant=principal.tenant,
        )
        self._budget.correct(limit, before, booked)

    def _give_back(self, record: RequestRecord) -> None:
        try:
            self._budget.give_back(record)
        except (RedisError, OSError) as error:
            log.warning("Tokens that were set aside could not be given back, that lapses: %s", error)


def _allowance(limits: list[TokenLimit], counts: list[Count], tokens: int) -> TokenAllowance | None:
    """Return what is left of the minute that has the least left."""
    least: TokenAllowance | None = None
    for limit, count in zip(limits, counts, strict=True):
        if not limit.per_minute:
            continue
        taken = count.minute + count.reserved + tokens
        remaining = max(0, limit.per_minute - taken)
        if least is None or remaining < least.remaining:
            seconds = 60 * min(taken, limit.per_minute) / limit.per_minute
            least = TokenAllowance(limit.per_minute, remaining, time.time() + seconds)
    return least


def _refused(holder: Holder, refusal: Refusal, tokens: int) -> TooManyTokens | QuotaSpent | TokensInUse:
    limit, count = refusal.limit, refusal.count
    if refusal.kind == MINUTE:
        # What running requests hold is free at their end, which nobody knows: a few seconds, then.
        missing = count.minute + tokens - limit.per_minute
        wait = 60 * missing / limit.per_minute if missing > 0 else 2.0
        return TooManyTokens(holder.name, limit.per_minute, count.minute, count.reserved, tokens, wait)
    assert holder.quota is not None
    if count.used + tokens <= limit.quota:
        return TokensInUse(holder.name, limit.quota, count.used, count.reserved, tokens)
    renews = datetime.fromtimestamp(limit.ends, UTC)
    return QuotaSpent(holder.name, str(holder.quota), limit.quota, count.used, tokens, renews)
