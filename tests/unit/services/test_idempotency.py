"""A repeated key gets what the first call began, and nothing else."""

import pytest
import redis

from services.context import RequestContext
from services.errors import IdempotencyConflict, InvalidRequest
from services.idempotency import Idempotency
from store.principal import Principal

ME = Principal("k1", "me")


def context(key: str, principal: Principal = ME, operation: str = "op") -> RequestContext:
    return RequestContext(principal, operation, key)


@pytest.fixture
def idempotency(redis_client: redis.Redis) -> Idempotency:
    return Idempotency(redis_client)


def test_without_a_key_nothing_is_remembered(idempotency: Idempotency, redis_client: redis.Redis) -> None:
    name = idempotency.name_of(context(""))
    assert name is None
    assert idempotency.find(name, {}) is None
    assert idempotency.remember(name, "gen-1", {}, 60) is None
    assert redis_client.dbsize() == 0


def test_the_first_call_wins(idempotency: Idempotency) -> None:
    name = idempotency.name_of(context("k"))
    assert idempotency.remember(name, "gen-1", {"a": 1, "b": 2}, 60) is None
    assert idempotency.remember(name, "gen-2", {"b": 2, "a": 1}, 60) == "gen-1"
    assert idempotency.find(name, {"a": 1, "b": 2}) == "gen-1"


def test_another_body_is_a_conflict(idempotency: Idempotency) -> None:
    name = idempotency.name_of(context("k"))
    idempotency.remember(name, "gen-1", {"a": 1}, 60)
    with pytest.raises(IdempotencyConflict):
        idempotency.find(name, {"a": 2})
    with pytest.raises(IdempotencyConflict):
        idempotency.remember(name, "gen-2", {"a": 2}, 60)


def test_a_key_is_its_callers_and_its_operations(idempotency: Idempotency) -> None:
    names = {
        idempotency.name_of(context("k")),
        idempotency.name_of(context("k", Principal("k2", "you"))),
        idempotency.name_of(context("k", operation="other")),
        idempotency.name_of(context("\ud800")),
    }
    assert len(names) == 4


def test_what_could_not_begin_frees_its_key(idempotency: Idempotency) -> None:
    name = idempotency.name_of(context("k"))
    idempotency.remember(name, "gen-1", {}, 60)
    with pytest.raises(ZeroDivisionError), idempotency.forget_on_error(name):
        raise ZeroDivisionError
    assert idempotency.find(name, {}) is None


def test_a_key_that_is_too_long_is_refused(idempotency: Idempotency) -> None:
    with pytest.raises(InvalidRequest, match="255"):
        idempotency.name_of(context("k" * 256))
