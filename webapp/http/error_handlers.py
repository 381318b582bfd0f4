"""Whatever a view raises becomes the answer of its face."""

import re
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from services.errors import ServiceError, as_service_error
from store.token_log.outcomes import Code, Detail, Failure
from text import quote
from webapp.http.access_log import answer
from webapp.http.error_status import HttpError, headers_of, status_of

#: A variable part of a rule, as Flask writes it.
_PLACEHOLDER = re.compile(r"<(?:\w+:)?(\w+)>")

#: How a face writes a failure.
ErrorBody = Callable[[Failure], dict[str, Any]]

#: Codes of werkzeug's own errors, by status.
_CODES = {404: Code.NOT_FOUND, 405: Code.INVALID_REQUEST, 413: Code.INVALID_REQUEST, 500: Code.INTERNAL_ERROR}


class Face:
    """How one face writes errors: those of its paths, and on its port also those of paths that nobody has."""

    def __init__(self, path: str, port: int, body: ErrorBody) -> None:
        self.path = path
        self.port = port
        self.body = body


class ErrorHandlers:
    """The handlers of one application. The first face is that of paths and ports that are nobody's."""

    def __init__(self, app: Flask, *faces: Face) -> None:
        self._app = app
        self._faces = faces
        app.register_error_handler(HTTPException, self._on_http_error)
        app.register_error_handler(Exception, self._on_error)

    def _respond(self, error: ServiceError) -> Response:
        answer().failed(error)
        response = jsonify(self._face().body(error.failure))
        response.status_code = status_of(error)
        response.headers.extend(headers_of(error))
        return response

    def _face(self) -> Face:
        by_path = [face for face in self._faces if f"{request.path}/".startswith(f"{face.path}/")]
        by_path.sort(key=lambda face: len(face.path), reverse=True)
        # Not from the Host header: behind a proxy that names another port.
        by_port = [face for face in self._faces if request.environ.get("SERVER_PORT") == str(face.port)]
        return (by_path or by_port or list(self._faces))[0]

    def _unknown_path(self) -> str:
        """Say which paths there are, in the face that was asked."""
        face = self._face()
        rules = {rule.rule for rule in self._app.url_map.iter_rules() if f"{rule.rule}/".startswith(f"{face.path}/")}
        known = ", ".join(sorted(_PLACEHOLDER.sub(r"{\1}", rule) for rule in rules))
        return f"There is no {request.method} {quote(request.path)} here. What there is: {known}"

    def _on_error(self, error: Exception) -> Response:
        return self._respond(as_service_error(error))

    def _on_http_error(self, error: HTTPException) -> Response:
        status = error.code or 500
        if status == 413:
            limit = request.max_content_length
            detail = Detail("body_too_large", "", f"The body is larger than the {limit} bytes allowed, unpacked")
        elif status == 404:
            detail = Detail("not_found", "", self._unknown_path())
        else:
            detail = Detail(error.name.lower().replace(" ", "_"), "", error.description or error.name)
        code = _CODES.get(status, Code.INVALID_REQUEST)
        response = self._respond(HttpError(Failure(code, detail.description, (detail,)), status))
        if status == 405 and error.get_response().headers.get("Allow"):
            response.headers["Allow"] = error.get_response().headers["Allow"]
        return response
