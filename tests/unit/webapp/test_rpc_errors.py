"""Every code of the error tree has a gRPC status, and its details say what the HTTP answer says."""

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2

from services.errors import InvalidRequest, QueueFull, RedisUnavailable, RequestFailed
from store.token_log.outcomes import Code, Detail, Failure, deadline_passed
from webapp.http.error_status import STATUS as HTTP_STATUS
from webapp.rpc.status import STATUS, rich_status, snake

CODES = [value for name, value in vars(Code).items() if name.isupper()]


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_status_of_each_face(code: str) -> None:
    assert code in HTTP_STATUS
    status = rich_status(RequestFailed(Failure(code, "words")))
    assert status.code == STATUS[code]
    assert status.message == "words"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (code, "cy-llm")
    # Nothing that has a name is INTERNAL.
    assert (status.code == code_pb2.INTERNAL) == (code == Code.INTERNAL_ERROR)
    assert status.code in [entry.value[0] for entry in grpc.StatusCode]


def test_details_say_it_more_exactly() -> None:
    assert rich_status(RequestFailed(deadline_passed(5))).code == code_pb2.DEADLINE_EXCEEDED
    assert rich_status(RedisUnavailable()).code == code_pb2.UNAVAILABLE
    assert rich_status(QueueFull("m", 5, 5)).code == code_pb2.RESOURCE_EXHAUSTED
    faults = [Detail("out_of_range", "generation.maxNewTokens", "too large"), Detail("required", "modelId", "missing")]
    status = rich_status(InvalidRequest(faults))
    request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(request) for detail in status.details)
    found = [(v.field, v.description, v.reason) for v in request.field_violations]
    assert found == [
        ("generation.max_new_tokens", "too large", "out_of_range"),
        ("model_id", "missing", "required"),
    ]
    assert snake("workerHint") == "worker_hint"
