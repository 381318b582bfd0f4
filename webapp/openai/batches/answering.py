"""One line of a batch, asked as its client would have asked it: the same checks, the same answer."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from services.container import Services
from services.context import RequestContext
from services.errors import ModelNotReady, RequestFailed, ServiceError, Unavailable, as_service_error
from services.inference.submission import OpenAIRequest
from store.sql.api_keys import Principal
from store.sql.file_tables import Batch
from store.token_log.entries import Entry, Kind, Reason
from store.token_log.outcomes import Code
from webapp.http.error_status import status_of
from webapp.openai.endpoints import ENDPOINTS, to_request
from webapp.openai.error_body import error_body
from webapp.openai.response_schemas import ResponsesSchema
from webapp.openai.whole_answer import Cancelled, read_body, read_head
from webapp.schemas.loading import load

log = logging.getLogger(__name__)

_RESPONSES = "/v1/responses"
#: Failures that another try may not meet.
#: Among them, of what another try would meet again.
_FINAL = ("poison_request",)
_PASSING = (Code.INTERNAL_ERROR, Code.INSUFFICIENT_RESOURCES, Code.MODEL_NOT_READY)


@dataclass(frozen=True)
class Answer:
    """What a line's client gets."""

    status: int
    request_id: str
    body: dict[str, Any]
    #: Whether it is a failure of the system's that another try may not meet.
    passing: bool = False


class GaveWay(Exception):
    """The line was stopped for somebody who waits. It is asked again when nobody does."""


class NotNow(Exception):
    """The system cannot take the line now: no worker, a full queue, no Redis. It is asked again later."""


def answer(
    services: Services, batch: Batch, body: dict[str, Any], given_up: Callable[[], bool], yields: bool
) -> Answer | None:
    """Return what became of a batch's body; None where it was ``given_up`` meanwhile.

    ``yields``: whether it may be stopped for somebody who waits. Raises ``NotNow``, ``GaveWay``.
    """
    request_id = ""
    try:
        # Its key may have been revoked since.
        principal = services.access.owner(batch.owner, batch.tenant)
        request = replace(_request(services, principal, batch.endpoint, body), background=True, yields=yields)
        call = RequestContext(principal, operation=batch.endpoint, disconnected=given_up)
        submission = services.inference.admit_openai(call, request)
        request_id = submission.record.id
        with ExitStack() as stack:
            stream = stack.enter_context(services.inference.open(call, submission))
            entries = _until_it_gives_way(stream.entries())
            try:
                head = read_head(entries, patient=True)
                assert head is not None
                found = json.loads(read_body(entries))
            except ServiceError:
                _tell_refusal(request, submission.record)
                raise
            if head["status"] >= 400:
                _tell_refusal(request, submission.record)
            return Answer(head["status"], request_id, found, passing=head["status"] >= 500)
    except GaveWay:
        # Nobody goes on with this try.
        services.inference.end(request_id)
        raise
    except RequestFailed as error:
        if given_up():
            return None
        final = any(detail.type in _FINAL for detail in error.failure.details)
        passing = error.failure.code in _PASSING or isinstance(error, Cancelled)
        return _failed(error, request_id, passing and not final)
    except Exception as error:
        if given_up():
            return None
        known = as_service_error(error)
        if isinstance(known, ModelNotReady | Unavailable):
            raise NotNow(str(known)) from error
        return _failed(known, request_id, passing=not isinstance(error, ServiceError))


def _until_it_gives_way(entries: Iterator[Entry | None]) -> Iterator[Entry | None]:
    for entry in entries:
        if entry is not None and entry.kind == Kind.RELEASE and entry.json()["reason"] == Reason.GAVE_WAY:
            raise GaveWay
        yield entry


def _request(services: Services, principal: Principal, path: str, body: dict[str, Any]) -> OpenAIRequest:
    if path == _RESPONSES:
        # Kept only where its client says so: a batch would push out what people's conversations go on from.
        return services.responses.request(principal, load(ResponsesSchema, {"store": False, **body}))
    return to_request(path, load(ENDPOINTS[path].schema, body))


def _tell_refusal(request: OpenAIRequest, record: Any) -> None:
    if request.on_refusal is not None:
        request.on_refusal(record)


def _failed(error: ServiceError, request_id: str, passing: bool) -> Answer:
    return Answer(status_of(error), request_id, error_body(error.failure), passing)
