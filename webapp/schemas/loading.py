"""JSON in, checked values out, one detail for each fault. For every face."""

import functools
import json
import re
from typing import Any

import marshmallow
from marshmallow import ValidationError, fields

from services.errors import InvalidRequest
from store.token_log.outcomes import Detail


class Number(fields.Float):
    """A JSON number; unlike its parent, never a string."""

    def _validated(self, value: Any) -> float:
        if type(value) not in (int, float):
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


class Digits(fields.Integer):
    """A whole number in a query: ASCII digits and nothing else."""

    default_error_messages = {"invalid": "Must be a whole number."}

    def _validated(self, value: Any) -> int:
        if not (isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value)):
            raise self.make_error("invalid", input=value)
        return int(value)


@functools.cache
def cached_schema(schema: type[marshmallow.Schema]) -> marshmallow.Schema:
    """Return the one instance of a schema: to make one costs more than to load a body with it."""
    return schema()


def load(schema: type[marshmallow.Schema], body: Any, prefix: str = "") -> dict[str, Any]:
    """Return ``body`` as ``schema`` loads it. Raises ``InvalidRequest``; ``prefix`` comes before its fields' names."""
    try:
        loaded: dict[str, Any] = cached_schema(schema).load(body)
    except ValidationError as error:
        raise InvalidRequest(_details(error.messages_dict, prefix)) from error
    return loaded


def json_object(raw: bytes | str, what: str = "The body") -> dict[str, Any]:
    """Return the JSON object that ``raw`` holds. Raises ``InvalidRequest``."""
    try:
        body = json.loads(raw)
        # An unpaired surrogate is legal in JSON but is no text: nothing later could encode it.
        if (b"\\u" if isinstance(raw, bytes) else "\\u") in raw:  # type: ignore[operator]
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise InvalidRequest.of("invalid_text", "", f"{what} holds text that is not valid Unicode") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest.of("invalid_json", "", f"{what} is not valid JSON") from error
    if not isinstance(body, dict):
        raise InvalidRequest.of("invalid_json", "", f"{what} must be a JSON object")
    return body


def _details(messages: dict[str, Any], prefix: str = "") -> list[Detail]:
    """Flatten marshmallow's nested messages."""
    found = []
    for key, problem in messages.items():
        path = prefix if key == "_schema" else f"{prefix}.{key}" if prefix else str(key)
        if isinstance(problem, dict):
            found += _details(problem, path)
        else:
            found += [Detail(_kind(text), path, text) for text in problem]
    return found


def _kind(text: str) -> str:
    """A stable word for one of marshmallow's sentences."""
    if text.startswith("Missing data"):
        return "required"
    if text.startswith("Unknown field"):
        return "unknown_field"
    if text.startswith(("Not a valid", "Field may not be null")):
        return "invalid_type"
    return "invalid_value"
