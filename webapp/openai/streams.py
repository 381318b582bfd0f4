"""The view of ``/v1/streams``: what a client missed of a stream of ``/v1``."""

from flask import Blueprint, Response, request

from services.errors import InvalidRequest
from webapp.gunicorn.admission_gate import serialized
from webapp.http.current import principal, services
from webapp.http.parsing import parse_query
from webapp.openai.relay import follow
from webapp.schemas.loading import Digits, NullIsAbsentSchema

bp = Blueprint("streams", __name__, url_prefix="/v1/streams")


class StreamQuery(NullIsAbsentSchema):
    """``GET /v1/streams/{id}``."""

    received = Digits()


@bp.get("/<answer_id>")
@serialized
def resume(answer_id: str) -> Response:
    """The rest of a stream, by its answer's id. ``Last-Event-ID``, or ``received``: how many events have come."""
    received = parse_query(StreamQuery).get("received")
    if received is None:
        received = _last_event(request.headers.get("Last-Event-ID", ""))
    return follow(services().inference.find_stream(principal(), answer_id), received)


def _last_event(header: str) -> int:
    text = header.strip()
    if text and not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidRequest.of("invalid_value", "Last-Event-ID", "Must be how many events have come: a whole number")
    return int(text or 0)
