"""``/metrics`` for Prometheus, and where it finds the other processes."""

import hmac

from flask import Blueprint, Response, jsonify, request

from services.metrics_targets import http_sd
from store.principal import Scope
from telemetry.exposition import of_this_program, render
from webapp.http.authentication import authenticate, tokens
from webapp.http.current import services

bp = Blueprint("metrics", __name__)


@bp.get("/metrics")
def metrics() -> Response:
    """The numbers of all processes of this front door, and the state of the system."""
    _authorize()
    body, content_type = render(request.headers.get("Accept", ""), of_this_program(), services().system_state)
    return Response(body, content_type=content_type)


@bp.get("/api/v1/metrics/targets")
def targets() -> Response:
    """Workers and gRPC processes that show metrics of their own, for ``http_sd_configs``."""
    _authorize()
    return jsonify(http_sd(services().client))


def _authorize() -> None:
    """Let in who has the scrape token, or a key with the scope ``admin``."""
    wanted = services().settings.metrics_token
    if wanted and any(hmac.compare_digest(wanted.encode(), token.encode()) for token in tokens()):
        return
    services().access.require_scope(authenticate(), Scope.ADMIN)
