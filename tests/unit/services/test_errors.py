"""What an exception means to a client: never more than it may know."""

import logging

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.exc import OperationalError

from services.errors import ModelNotFound, RequestFailed, ServiceError, as_service_error
from services.limit_errors import TooManyRequests
from store.token_log.outcomes import Code, Detail, Failure


@pytest.mark.parametrize(
    ("error", "code", "retry_after"),
    [
        (RedisConnectionError("redis://:secret@host"), Code.INSUFFICIENT_RESOURCES, 2),
        (OperationalError("SELECT secret", {}, Exception("secret")), Code.INSUFFICIENT_RESOURCES, 5),
        (ZeroDivisionError("secret"), Code.INTERNAL_ERROR, None),
    ],
)
def test_faults_become_words_without_secrets(error: Exception, code: str, retry_after: int | None) -> None:
    found = as_service_error(error)
    assert (found.failure.code, found.retry_after) == (code, retry_after)
    assert "secret" not in str(found.failure.to_dict())


def test_the_log_has_no_statement(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        as_service_error(OperationalError("INSERT secret", {"k": "secret"}, Exception("secret")))
    assert "OperationalError" in caplog.text
    assert "secret" not in caplog.text


def test_an_error_of_a_service_stays_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    error = ModelNotFound("x", "modelId")
    assert as_service_error(error) is error
    assert not caplog.records


@pytest.mark.parametrize("code", [Code.MODEL_NOT_READY, Code.INSUFFICIENT_RESOURCES, Code.INTERNAL_ERROR])
def test_how_a_worker_ended_it_says_whether_to_try_again(code: str) -> None:
    found = RequestFailed(Failure(code, "m"))
    assert found.failure.code == code
    assert (found.retry_after is None) == (code == Code.INTERNAL_ERROR)


def test_a_rate_names_the_seconds_to_wait() -> None:
    assert (TooManyRequests("This API key", 5, 0).retry_after, TooManyRequests("This API key", 5, 0).failure.code) == (
        1,
        Code.RATE_LIMITED,
    )


def test_every_error_has_a_code_of_the_interface_document() -> None:
    known = {value for name, value in vars(Code).items() if name.isupper()}
    pending, seen = [ServiceError], 0
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        assert kind.code in known, kind
        seen += 1
    assert seen > 15
    assert Failure.from_dict(Failure("c", "m", (Detail("t", "f", "d"),)).to_dict()).details[0].field == "f"
