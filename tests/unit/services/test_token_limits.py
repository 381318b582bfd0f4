"""Tokens of a minute and of a quota: set aside, counted, given back, and set right from the books."""

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import redis

from services.limit_errors import QuotaSpent, RateLimited, TokensInUse, TooManyTokens
from services.limit_holders import DefaultBounds
from services.token_limits import TokenAllowance, TokenLimits
from store.principal import Bounds, Principal
from store.quota import Quota
from store.redis import keys
from store.redis.request_records import RequestRecord
from store.token_budget.budget import TokenBudget
from store.token_budget.settlement import FIELD, Settlement, measured_by, settlement
from store.token_log import log as token_log
from store.token_log.entries import Outcome

_NUMBERS = itertools.count()


class BooksOf:
    """Books that say what the test says."""

    def __init__(self) -> None:
        self.booked: dict[str, int] = {}
        self.asked: list[datetime] = []

    def tokens_since(self, moment: datetime, *, key: str | None, tenant: str | None) -> int:
        self.asked.append(moment)
        return self.booked.get(key or f"tenant/{tenant}", 0)


@pytest.fixture
def books() -> BooksOf:
    return BooksOf()


@pytest.fixture
def token_limits(redis_client: redis.Redis, books: BooksOf) -> Iterator[TokenLimits]:
    made = TokenLimits(TokenBudget(redis_client), books, DefaultBounds())
    yield made
    made.close()


def key(name: str = "k", tenant: str = "acme", of_tenant: Bounds | None = None, **bounds: object) -> Principal:
    return Principal(name, name, tenant=tenant, bounds=Bounds(**bounds), tenant_bounds=of_tenant or Bounds())  # type: ignore[arg-type]


def record(limits: TokenLimits, principal: Principal, tokens: int, seconds: float = 60) -> RequestRecord:
    holders = [holder.id for holder in limits.measured(principal)]
    return RequestRecord(
        id=f"gen-{next(_NUMBERS)}",
        kind=RequestRecord.GENERATE,
        model="demo",
        owner=principal.id,
        deadline=time.time() + seconds,
        payload={FIELD: measured_by(holders, tokens, counts_in_minute=True)},
    )


def begin(limits: TokenLimits, principal: Principal, tokens: int, seconds: float = 60) -> RequestRecord:
    """Send a request; return its record."""
    made = record(limits, principal, tokens, seconds)
    with limits.reserved(principal, made):
        pass
    return made


def end(client: redis.Redis, made: RequestRecord, prompt: int, completion: int) -> None:
    """End a request as its worker would."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    data = {"outcome": Outcome.FINISHED, "usage": usage}
    assert token_log.end(client, made.id, 60, data, "", settlement(made, usage, final=True))


def test_who_has_no_limit_leaves_no_trace(redis_client: redis.Redis, token_limits: TokenLimits) -> None:
    made = record(token_limits, key(), 1_000_000)
    with token_limits.reserved(key(), made) as allowance:
        assert allowance is None
    assert redis_client.dbsize() == 0


def test_many_at_once_pass_only_as_far_as_the_minute_has_room(
    token_limits: TokenLimits, redis_client: redis.Redis
) -> None:
    """Twenty at one moment, 200 tokens each, of 1,000: five; D05."""
    principal = key(tokens_per_minute=1000)

    def one(_: int) -> RequestRecord | None:
        try:
            return begin(token_limits, principal, 200)
        except TooManyTokens:
            return None

    with ThreadPoolExecutor(20) as pool:
        begun = [made for made in pool.map(one, range(20)) if made]
    assert len(begun) == 5
    # What they did not use is there again at once.
    for made in begun:
        end(redis_client, made, 10, 10)
    again = begin(token_limits, principal, 890)
    end(redis_client, again, 0, 0)
    with pytest.raises(TooManyTokens):
        begin(token_limits, principal, 980)


def test_a_refusal_tells_every_number(token_limits: TokenLimits, redis_client: redis.Redis) -> None:
    principal = key(tokens_per_minute=600)
    end(redis_client, begin(token_limits, principal, 500), 20, 480)
    running = begin(token_limits, principal, 60)
    with pytest.raises(TooManyTokens) as refused:
        begin(token_limits, principal, 400)
    words = str(refused.value)
    for part in ("This API key may use 600 tokens a minute", "60 are set aside", "this one may need 400"):
        assert part in words
    # 499 of 600 used, a tenth of a second or so later; 400 more fit when 300 have leaked away: 30 s.
    assert 25 <= (refused.value.retry_after or 0) <= 31
    assert refused.value.failure.details[0].type == "tokens_per_minute"
    end(redis_client, running, 0, 0)


def test_the_minute_leaks_away(token_limits: TokenLimits, redis_client: redis.Redis) -> None:
    principal = key(tokens_per_minute=60_000)
    end(redis_client, begin(token_limits, principal, 60_000), 0, 60_000)
    with pytest.raises(TooManyTokens):
        begin(token_limits, principal, 5_000)
    # The hash's own clock is set back: as if six seconds had passed.
    name = keys.tokens("k")
    at = redis_client.hget(name, "at")
    assert at is not None
    redis_client.hset(name, "at", int(at) - 6_000)
    begin(token_limits, principal, 5_000)


def test_what_is_left_goes_down_and_is_never_below_nothing(
    token_limits: TokenLimits, redis_client: redis.Redis
) -> None:
    principal = key(tokens_per_minute=1000)
    left: list[TokenAllowance | None] = []
    for _ in range(2):
        made = record(token_limits, principal, 400)
        with token_limits.reserved(principal, made) as allowance:
            left.append(allowance)
    assert [each.remaining for each in left if each] == [600, 200]
    # It used more than was set aside: the estimate of the prompt was too low.
    end(redis_client, made, 5_000, 400)
    [use] = token_limits.used(principal)
    assert use.count.minute > 1000
    with pytest.raises(TooManyTokens) as refused:
        begin(token_limits, principal, 1)
    assert refused.value.remaining == 0


def test_a_request_that_could_not_be_sent_gives_back(token_limits: TokenLimits) -> None:
    principal = key(tokens_per_minute=100)
    for _ in range(50):
        with pytest.raises(ConnectionError), token_limits.reserved(principal, record(token_limits, principal, 100)):
            raise ConnectionError
    begin(token_limits, principal, 100)


def test_a_reserve_of_a_killed_process_lapses_with_its_deadline(
    token_limits: TokenLimits, redis_client: redis.Redis
) -> None:
    principal = key(tokens_per_minute=100)
    made = begin(token_limits, principal, 100, seconds=1)
    with pytest.raises(TooManyTokens):
        begin(token_limits, principal, 1)
    # Its time is over, and that of grace: as if so long had passed.
    redis_client.zadd(keys.token_reserves("k"), {made.id: 1})
    begin(token_limits, principal, 100)
    # Its late end counts nothing twice, and takes nothing from others.
    end(redis_client, made, 50, 50)
    [use] = token_limits.used(principal)
    assert (use.count.minute, use.count.reserved) == (0, 100)


def test_a_client_that_left_holds_nothing_and_what_follows_counts_once(
    token_limits: TokenLimits, redis_client: redis.Redis
) -> None:
    redis_client.xadd(keys.bills(), {"b": "one that is not booked yet: the count is not compared with the books"})
    principal = key(tokens_per_minute=1000, quota=Quota(1000, "day"))
    made = begin(token_limits, principal, 500)
    so_far = {"prompt_tokens": 10, "completion_tokens": 40}
    released = settlement(made, so_far, final=False)
    # As the worker's script settles it.
    TokenBudget(redis_client).settle(released)
    [use] = token_limits.used(principal)
    assert (use.count.reserved, use.count.used) == (0, 50)
    # It came back, and all of it is 60.
    end(redis_client, made, 10, 50)
    [use] = token_limits.used(principal)
    assert (use.count.reserved, use.count.used, use.count.minute) == (0, 60, 60)


def test_the_tenants_limit_is_shared_and_a_refusal_costs_the_key_nothing(token_limits: TokenLimits) -> None:
    shared = Bounds(tokens_per_minute=300)
    first = key("first", of_tenant=shared, tokens_per_minute=1000)
    second = key("second", of_tenant=shared)
    begin(token_limits, first, 200)
    with pytest.raises(TooManyTokens, match="Tenant 'acme' may use 300"):
        begin(token_limits, second, 200)
    with pytest.raises(TooManyTokens, match="Tenant 'acme'"):
        begin(token_limits, first, 200)
    assert {use.holder.id: use.count.reserved for use in token_limits.used(first)} == {
        "first": 200,
        "tenant/acme": 200,
    }


def test_a_spent_quota_says_when_it_renews_and_not_to_retry(
    token_limits: TokenLimits, redis_client: redis.Redis, books: BooksOf
) -> None:
    principal = key(quota=Quota(1000, "day"))
    books.booked["k"] = 990
    with pytest.raises(QuotaSpent) as refused:
        begin(token_limits, principal, 100)
    words = str(refused.value)
    renews = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    assert "may use 1000/day tokens, and has used 990: 10 are left, and this request may need 100" in words
    assert f"renews at {renews}T00:00:00" in words
    assert not refused.value.worth_retrying
    # Ten fit.
    begin(token_limits, principal, 10)


def test_what_running_requests_hold_of_a_quota_is_another_matter(token_limits: TokenLimits) -> None:
    principal = key(quota=Quota(1000, "day"))
    begin(token_limits, principal, 900)
    with pytest.raises(TokensInUse) as refused:
        begin(token_limits, principal, 200)
    assert refused.value.worth_retrying


def test_a_raised_limit_counts_at_once_and_the_same_again_resets_nothing(
    token_limits: TokenLimits, redis_client: redis.Redis, books: BooksOf
) -> None:
    small = key(quota=Quota(1000, "day"))
    end(redis_client, begin(token_limits, small, 1000), 500, 500)
    books.booked["k"] = 1000
    for _ in range(2):
        with pytest.raises(QuotaSpent):
            begin(token_limits, key(quota=Quota(1000, "day")), 1)
    begin(token_limits, key(quota=Quota(2000, "day")), 1000)
    with pytest.raises(RateLimited):
        begin(token_limits, key(quota=Quota(2000, "day")), 1)


def test_a_flushed_redis_is_rebuilt_from_the_books(
    token_limits: TokenLimits, redis_client: redis.Redis, books: BooksOf
) -> None:
    principal = key(quota=Quota(1000, "day"))
    end(redis_client, begin(token_limits, principal, 700), 300, 400)
    books.booked["k"] = 700
    redis_client.flushall()
    with pytest.raises(QuotaSpent, match="has used 700"):
        begin(token_limits, principal, 400)
    begin(token_limits, principal, 300)


def test_nobody_is_refused_by_a_count_that_the_books_do_not_know(
    token_limits: TokenLimits, redis_client: redis.Redis, books: BooksOf
) -> None:
    principal = key(quota=Quota(1000, "day"))
    end(redis_client, begin(token_limits, principal, 1000), 500, 500)
    # The books say less, and nothing waits to be booked: they are right.
    books.booked["k"] = 100
    begin(token_limits, principal, 500)


def test_while_bills_wait_the_count_stands(
    token_limits: TokenLimits, redis_client: redis.Redis, books: BooksOf
) -> None:
    principal = key(quota=Quota(1000, "day"))
    end(redis_client, begin(token_limits, principal, 1000), 500, 500)
    redis_client.xadd(keys.bills(), {"b": "one that is not booked yet"})
    with pytest.raises(QuotaSpent):
        begin(token_limits, principal, 500)


def test_what_is_counted_while_the_books_are_read_is_not_lost(
    token_limits: TokenLimits, redis_client: redis.Redis, books: BooksOf
) -> None:
    principal, budget = key(quota=Quota(1000, "day")), TokenBudget(redis_client)
    end(redis_client, begin(token_limits, principal, 500), 100, 100)
    limit = token_limits._limit(token_limits.measured(principal)[0], counts_in_minute=True)
    before = budget.used_before(limit)
    end(redis_client, begin(token_limits, principal, 500), 100, 100)
    assert not budget.correct(limit, before, 200)
    assert budget.correct(limit, budget.used_before(limit), 400)


def test_a_new_period_begins_with_what_the_books_have_of_it(
    token_limits: TokenLimits, redis_client: redis.Redis, books: BooksOf
) -> None:
    """Inherited quotas turn over too; D02."""
    of_tenant = Bounds(quota=Quota(1000, "day"))
    principal = key(of_tenant=of_tenant)
    end(redis_client, begin(token_limits, principal, 1000), 500, 500)
    books.booked["tenant/acme"] = 1000
    with pytest.raises(QuotaSpent, match="Tenant 'acme' may use 1000/day"):
        begin(token_limits, principal, 1)
    # Yesterday's count is held still.
    name, yesterday = keys.tokens("tenant/acme"), int(time.time()) - 86_400
    redis_client.hset(name, mapping={"period": yesterday * 1000, "ends": yesterday + 1, "used": 1000})
    books.booked["tenant/acme"] = 0
    begin(token_limits, principal, 1000)
    assert books.asked[-1] == Quota(1, "day").span(datetime.now(UTC))[0]


def test_what_ends_in_the_next_period_is_the_books(token_limits: TokenLimits, redis_client: redis.Redis) -> None:
    principal = key(quota=Quota(1000, "day"))
    made = begin(token_limits, principal, 500)
    name, past = keys.tokens("k"), int(time.time()) - 1
    redis_client.hset(name, mapping={"ends": past})
    end(redis_client, made, 100, 100)
    assert redis_client.hmget(name, "period", "used", "reserved") == [None, None, b"0"]


def test_setting_the_count_back(token_limits: TokenLimits, redis_client: redis.Redis, books: BooksOf) -> None:
    principal = key(quota=Quota(1000, "month"))
    end(redis_client, begin(token_limits, principal, 1000), 500, 500)
    books.booked["k"] = 1000
    with pytest.raises(QuotaSpent):
        begin(token_limits, principal, 1)
    books.booked["k"] = 0
    moment = datetime.now(UTC).replace(microsecond=0)
    back = replace(principal, bounds=Bounds(quota=Quota(1000, "month", moment.timestamp())))
    begin(token_limits, back, 1000)
    assert books.asked[-1] == moment


def test_a_line_of_a_batch_counts_in_the_quota_alone(token_limits: TokenLimits, redis_client: redis.Redis) -> None:
    principal = key(tokens_per_minute=100, quota=Quota(1000, "day"))
    redis_client.xadd(keys.bills(), {"b": "one that is not booked yet"})
    made = record(token_limits, principal, 500)
    made.payload[FIELD]["minute"] = False
    with token_limits.reserved(principal, made) as allowance:
        assert allowance is None
    end(redis_client, made, 200, 200)
    [use] = token_limits.used(principal)
    assert (use.count.minute, use.count.used) == (0, 400)


def test_whoever_is_not_settled_is_not_reserved_of(token_limits: TokenLimits, redis_client: redis.Redis) -> None:
    """A line of a batch counts in its tenant's quota, and not in its key's minute: nothing is left set aside there."""
    principal = key(tokens_per_minute=100, of_tenant=Bounds(quota=Quota(1000, "day")))
    redis_client.xadd(keys.bills(), {"b": "one that is not booked yet"})
    made = record(token_limits, principal, 500)
    made.payload[FIELD] = measured_by(["tenant/acme"], 500, counts_in_minute=False)
    with token_limits.reserved(principal, made):
        pass
    end(redis_client, made, 200, 200)
    counts = {use.holder.id: use.count for use in token_limits.used(principal)}
    assert counts["tenant/acme"].used == 400
    assert counts["k"].reserved == counts["tenant/acme"].reserved == 0


def test_a_damaged_settlement_does_not_keep_a_request_from_ending(
    redis_client: redis.Redis,
) -> None:
    assert token_log.end(redis_client, "gen-damaged", 60, {"outcome": Outcome.FINISHED}, "", Settlement("{not json"))
    last = token_log.last(redis_client, "gen-damaged")
    assert last is not None and last.terminal


def test_the_count_is_compared_with_the_books_from_time_to_time(
    token_limits: TokenLimits, redis_client: redis.Redis, books: BooksOf
) -> None:
    """Requests that nobody ended were booked, and never counted."""
    principal = key(quota=Quota(1000, "day"))
    begin(token_limits, principal, 10)
    redis_client.hset(keys.tokens("k"), "checked", 0)
    books.booked["k"] = 950
    token_limits._looked_at.clear()
    begin(token_limits, principal, 10)
    # After what it has been given before.
    token_limits._correcting.submit(lambda: None).result(10)
    with pytest.raises(RateLimited):
        begin(token_limits, principal, 100)
    assert redis_client.hget(keys.tokens("k"), "used") == b"950"
