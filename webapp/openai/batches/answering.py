"""One line of a batch, asked as its client would have asked it: the same checks, the same answer."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from services.container import Services
from services.context import RequestContext
from services.errors import (
    ModelNotReady,
    RequestFailed,
    RequestNotFound,
    ServiceError,
    Unavailable,
    as_service_error,
    translated_errors,
)
from services.inference.request_stream import ClientDisconnected, RequestStream
from services.inference.service import InferenceService
from services.inference.submission import OpenAIRequest
from store.principal import Principal
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
#: Failures that another try may not meet; of their kinds of faults, those that it would.
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


class Preempted(Exception):
    """The line was stopped for somebody who waits. Its request goes on when nobody does."""

    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self.request_id = request_id


class NotNow(Exception):
    """The system cannot take the line now: no worker, a full queue, no Redis. It is asked again later."""


def answer(
    services: Services,
    batch: Batch,
    body: dict[str, Any],
    given_up: Callable[[], bool],
    preemptible: bool,
    stopped: str | None = None,
) -> Answer | None:
    """Return what became of a batch's body; None where it was ``given_up`` meanwhile.

    ``preemptible``: whether it may be stopped for somebody who waits. ``stopped``: its request, where that was; it goes
    on from there. Raises ``NotNow``, ``Preempted``.
    """
    asked = _Asked(stopped)
    try:
        with translated_errors():
            return _ask(services, batch, body, given_up, preemptible, asked)
    except Preempted:
        raise
    except ClientDisconnected:
        return None
    except RequestFailed as error:
        return None if given_up() else _failed(error, asked.id, _is_passing(error))
    except (ModelNotReady, Unavailable) as error:
        raise NotNow(str(error)) from error
    except ServiceError as error:
        return _failed(error, asked.id, passing=False)
    except Exception as error:
        # A fault of ours; one line is no reason to end the others'.
        return _failed(as_service_error(error), asked.id, passing=True)


@dataclass
class _Asked:
    """What is known of a line's request, also where it fails."""

    #: One that gave way and is to go on; None where it is asked for the first time, or anew.
    stopped: str | None
    request_id: str | None = None

    @property
    def id(self) -> str:
        return self.request_id or ""


def _ask(
    services: Services,
    batch: Batch,
    body: dict[str, Any],
    given_up: Callable[[], bool],
    preemptible: bool,
    asked: _Asked,
) -> Answer:
    # Its key may have been revoked since.
    principal = services.access.owner(batch.owner, batch.tenant)
    request = replace(_request(services, principal, batch.endpoint, body), background=True, preemptible=preemptible)
    call = RequestContext(principal, operation=batch.endpoint, disconnected=given_up)
    with ExitStack() as stack:
        stream = _stream(stack, services.inference, call, request, asked)
        record = stream.record
        asked.request_id = record.id
        entries = _until_preempted(stream.entries(), record.id)
        try:
            head = read_head(entries, patient=True)
            assert head is not None
            found = json.loads(read_body(entries)[0])
        except Preempted:
            stream.detached = True
            raise
        except ServiceError:
            _tell_refusal(request, record)
            raise
        if head["status"] >= 400:
            _tell_refusal(request, record)
        return Answer(head["status"], record.id, found, passing=head["status"] >= 500)


def _stream(
    stack: ExitStack, inference: InferenceService, call: RequestContext, request: OpenAIRequest, asked: _Asked
) -> RequestStream:
    if asked.stopped is not None:
        try:
            return stack.enter_context(inference.take_up(call, asked.stopped, request.preemptible))
        except RequestNotFound:
            log.info("Nothing is left of a line that gave way, it begins anew", extra={"request_id": asked.stopped})
    return stack.enter_context(inference.open(call, inference.admit_openai(call, request)))


def _is_passing(error: RequestFailed) -> bool:
    """Whether another try may not meet the failure."""
    final = any(detail.type in _FINAL for detail in error.failure.details)
    return not final and (error.failure.code in _PASSING or isinstance(error, Cancelled))


def _until_preempted(entries: Iterator[Entry | None], request_id: str) -> Iterator[Entry | None]:
    for entry in entries:
        if entry is not None and entry.kind == Kind.RELEASE and entry.json()["reason"] == Reason.PREEMPTED:
            raise Preempted(request_id)
        yield entry


def _request(services: Services, principal: Principal, path: str, body: dict[str, Any]) -> OpenAIRequest:
    if path == _RESPONSES:
        # Kept only where its client says so: a batch would push out what people's conversations go on from.
        # In the background it is anyway.
        checked = load(ResponsesSchema, {"store": False, **body})
        return replace(services.responses.request(principal, checked), detached=False)
    return to_request(path, load(ENDPOINTS[path].schema, body))


def _tell_refusal(request: OpenAIRequest, record: Any) -> None:
    if request.on_refusal is not None:
        request.on_refusal(record)


def _failed(error: ServiceError, request_id: str, passing: bool) -> Answer:
    return Answer(status_of(error), request_id, error_body(error.failure), passing)
