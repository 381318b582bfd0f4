"""The views of ``/v1/responses``: OpenAI's Responses API."""

from dataclasses import replace

from flask import Blueprint, Response, jsonify

from services.inference.responses_body import response_id as response_id_of
from services.inference.service import request_of
from webapp.gunicorn.admission_gate import serialized
from webapp.http.current import context, principal, services
from webapp.http.parsing import parse_body, parse_query
from webapp.openai.dialects import ResponsesDialect
from webapp.openai.relay import Refusal, follow, relay
from webapp.openai.response_schemas import InputItemsQuery, ResponsesSchema, RetrieveQuery

#: A response that is not at its end.
_OPEN = ("queued", "in_progress")

bp = Blueprint("responses", __name__, url_prefix="/v1/responses")


@bp.post("")
@serialized
def create() -> Response:
    """A response, whole or streamed."""
    body = parse_body(ResponsesSchema)
    request, streamed = services().responses.request(principal(), body), bool(body.get("stream"))
    if request.detached and not streamed:
        call = context()
        submission = services().inference.admit_openai(call, request)
        with Refusal(request, submission):
            services().inference.start(call, submission)
        return jsonify(services().responses.show(principal(), response_id_of(submission.record.id)))
    return relay(request, streamed, ResponsesDialect)


@bp.post("/input_tokens")
@serialized
def input_tokens() -> Response:
    """How many tokens a response would be made of."""
    body = parse_body(ResponsesSchema)
    whole = {**body, "store": False, "stream": False, "background": False, "include_performance": False}
    request = services().responses.request(principal(), whole)
    return relay(replace(request, path="/v1/responses/input_tokens", light=True), streamed=False)


@bp.get("/<response_id>")
def show(response_id: str) -> Response:
    """A response as it is now, or the events of one that was streamed."""
    query = parse_query(RetrieveQuery)
    if query["stream"]:
        services().responses.require_kept(principal(), response_id)
        received = query["starting_after"] + 1 if "starting_after" in query else 0
        return follow(services().inference.find_stream(principal(), response_id), received)
    found = services().responses.show(principal(), response_id)
    if found.get("background") and found["status"] in _OPEN:
        services().inference.look_after(request_of(response_id))
    return jsonify(found)


@bp.delete("/<response_id>")
def delete(response_id: str) -> Response:
    """Forget a response."""
    request_id = services().responses.delete(principal(), response_id)
    services().inference.end(request_id)
    return jsonify({"id": response_id, "object": "response", "deleted": True})


@bp.get("/<response_id>/input_items")
def input_items(response_id: str) -> Response:
    """What a response was made of."""
    query = parse_query(InputItemsQuery)
    newest_first = query["order"] == "desc"
    page = services().responses.input_items(principal(), response_id, query["limit"], query.get("after"), newest_first)
    ids = [item["id"] for item in page.items]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return jsonify(
        {"object": "list", "data": page.items, "first_id": first, "last_id": last, "has_more": page.has_more}
    )


@bp.post("/<response_id>/cancel")
def cancel(response_id: str) -> Response:
    """End a response that runs in the background."""
    responses = services().responses
    responses.require_cancellable(principal(), response_id)
    if responses.show(principal(), response_id)["status"] in _OPEN:
        services().inference.end(request_of(response_id))
    return jsonify(responses.show(principal(), response_id))
