"""The services of the current application, and what is known of the current HTTP call."""

from typing import cast

from flask import Flask, Response, after_this_request, current_app, g, request

from services.container import Services
from services.context import RequestContext
from services.limits import Allowance
from services.token_limits import TokenAllowance
from services.trace_parent import trace_id_of
from store.principal import Principal
from webapp.gunicorn import admission_gate
from webapp.gunicorn.connection import client_disconnected

_KEY = "cy_llm"


def install(app: Flask, services: Services) -> None:
    """Give the views of ``app`` their services."""
    app.extensions[_KEY] = services


def services_of(app: Flask) -> Services:
    """Return the services that were installed on ``app``."""
    return cast(Services, app.extensions[_KEY])


def services() -> Services:
    """Return the services of the current application."""
    return cast(Services, current_app.extensions[_KEY])


def principal() -> Principal:
    """Whose call this is."""
    return cast(Principal, g.principal)


def _announce_loading(model: str) -> None:
    """Say on the answer, which may be long in coming, that a model is being loaded for it."""

    @after_this_request
    def add(response: Response) -> Response:
        response.headers["X-Model-Loading"] = model
        return response


def _note_allowance(allowance: Allowance) -> None:
    g.allowance = allowance


def _note_token_allowance(allowance: TokenAllowance) -> None:
    g.token_allowance = allowance


def context() -> RequestContext:
    """What services are told of the current call."""
    return RequestContext(
        principal=g.principal,
        operation=request.path,
        trace_id=trace_id_of(request.headers.get("traceparent")),
        idempotency_key=request.headers.get("Idempotency-Key", ""),
        disconnected=client_disconnected(),
        on_submitted=admission_gate.release,
        on_model_loading=_announce_loading,
        on_counted=_note_allowance,
        on_tokens_counted=_note_token_allowance,
    )
