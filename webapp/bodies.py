"""Request bodies: JSON in, checked values out, one detail for each fault."""

import functools
import json
from typing import Any

import marshmallow
from flask import request
from marshmallow import ValidationError, fields

from store.outcomes import Detail
from webapp.errors import invalid


class Number(fields.Float):
    """A JSON number; unlike its parent, never a string."""

    def _validated(self, value: Any) -> float:
        if type(value) not in (int, float):
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


@functools.cache
def instance(schema: type[marshmallow.Schema]) -> marshmallow.Schema:
    """Return the one instance of a schema: to make one costs more than to load a body with it."""
    return schema()


def parse(schema: type[marshmallow.Schema]) -> dict[str, Any]:
    """Return the request's JSON body as ``schema`` loads it. Raises ``ApiError`` (400)."""
    body = json_object()
    try:
        loaded: dict[str, Any] = instance(schema).load(body)
    except ValidationError as error:
        raise invalid(details_of(error)) from error
    return loaded


def json_object() -> dict[str, Any]:
    """Return the request's body, which must be a JSON object. Raises ``ApiError`` (400)."""
    raw = request.get_data()
    try:
        body = json.loads(raw)
        # An unpaired surrogate is legal in JSON but is no text: nothing behind could encode it.
        if b"\\u" in raw:
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise invalid([Detail("invalid_text", "", "The body holds text that is not valid Unicode")]) from error
    except (ValueError, RecursionError) as error:
        raise invalid([Detail("invalid_json", "", "The body is not valid JSON")]) from error
    if not isinstance(body, dict):
        raise invalid([Detail("invalid_json", "", "The body must be a JSON object")])
    return body


def details_of(error: ValidationError, prefix: str = "") -> list[Detail]:
    """Return a detail for each fault that a schema found; ``prefix`` comes before the fields' names."""
    return _details(error.messages_dict, prefix)


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
