"""Whatever a view raises becomes the answer of its dialect."""

import logging

import redis
from flask import Flask, Response, jsonify, request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from store.outcomes import Code, Detail, Failure
from webapp import errors
from webapp.errors import ApiError

log = logging.getLogger(__name__)

#: Codes of werkzeug's own errors, by status.
_CODES = {404: Code.NOT_FOUND, 405: Code.INVALID_REQUEST, 413: Code.INVALID_REQUEST, 500: Code.INTERNAL_ERROR}


def register(app: Flask) -> None:
    """Install the handlers on ``app``."""
    app.register_error_handler(ApiError, respond)
    app.register_error_handler(redis.RedisError, _on_redis_error)
    app.register_error_handler(SQLAlchemyError, _on_database_error)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(Exception, _on_unexpected)


def respond(error: ApiError) -> Response:
    """Write an error in the dialect of the path."""
    body = errors.openai_body if request.path.startswith("/v1/") else errors.native_body
    response = jsonify(body(error.failure))
    response.status_code = error.status
    response.headers.extend(error.headers)
    return response


def _on_redis_error(error: redis.RedisError) -> Response:
    log.error("Redis cannot be used: %s", error)
    return respond(errors.redis_unavailable())


def _on_database_error(error: SQLAlchemyError) -> Response:
    log.error("The database cannot be used: %s", error.__class__.__name__, exc_info=error)
    return respond(errors.database_unavailable())


def _on_http_error(error: HTTPException) -> Response:
    status = error.code or 500
    if status == 413:
        limit = request.max_content_length
        detail = Detail("body_too_large", "", f"The body is larger than the {limit} bytes allowed")
    else:
        detail = Detail(error.name.lower().replace(" ", "_"), "", error.description or error.name)
    response = respond(
        ApiError(Failure(_CODES.get(status, Code.INVALID_REQUEST), detail.description, (detail,)), status)
    )
    if status == 405 and error.get_response().headers.get("Allow"):
        response.headers["Allow"] = error.get_response().headers["Allow"]
    return response


def _on_unexpected(error: Exception) -> Response:
    log.error("Unexpected error", exc_info=error)
    return respond(ApiError(Failure(Code.INTERNAL_ERROR, "Internal error; the log has the details")))
