"""Whatever a view raises becomes the answer of its face."""

from collections.abc import Callable
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from services.errors import ServiceError, as_service_error
from store.token_log.outcomes import Code, Detail, Failure
from webapp.http.access_log import answer
from webapp.http.error_status import HttpError, headers_of, status_of

#: How a face writes a failure.
ErrorBody = Callable[[Failure], dict[str, Any]]

#: Codes of werkzeug's own errors, by status.
_CODES = {404: Code.NOT_FOUND, 405: Code.INVALID_REQUEST, 413: Code.INVALID_REQUEST, 500: Code.INTERNAL_ERROR}


class ErrorHandlers:
    """The handlers of one application. ``bodies`` maps the start of a path to the face's way to write an error."""

    def __init__(self, app: Flask, bodies: dict[str, ErrorBody], default: ErrorBody) -> None:
        self._bodies = bodies
        self._default = default
        app.register_error_handler(HTTPException, self._on_http_error)
        app.register_error_handler(Exception, self._on_error)

    def _respond(self, error: ServiceError) -> Response:
        body = next((body for start, body in self._bodies.items() if request.path.startswith(start)), self._default)
        answer().failed(error)
        response = jsonify(body(error.failure))
        response.status_code = status_of(error)
        response.headers.extend(headers_of(error))
        return response

    def _on_error(self, error: Exception) -> Response:
        return self._respond(as_service_error(error))

    def _on_http_error(self, error: HTTPException) -> Response:
        status = error.code or 500
        if status == 413:
            limit = request.max_content_length
            detail = Detail("body_too_large", "", f"The body is larger than the {limit} bytes allowed")
        else:
            detail = Detail(error.name.lower().replace(" ", "_"), "", error.description or error.name)
        code = _CODES.get(status, Code.INVALID_REQUEST)
        response = self._respond(HttpError(Failure(code, detail.description, (detail,)), status))
        if status == 405 and error.get_response().headers.get("Allow"):
            response.headers["Allow"] = error.get_response().headers["Allow"]
        return response
