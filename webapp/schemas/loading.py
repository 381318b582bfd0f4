"""JSON in, checked values out, one detail for each fault. For every face."""

import functools
import json
import re
from typing import Any

import marshmallow
from marshmallow import RAISE, ValidationError, fields

from configuration.fields import Integer, NullIsAbsentSchema, Number
from services.errors import InvalidRequest
from store.token_log.outcomes import Detail
from text import NotText, decode, field_with_half_a_character, has_control_characters, require_whole_characters

__all__ = [
    "Digits",
    "Flag",
    "Integer",
    "Name",
    "NullIsAbsentSchema",
    "Number",
    "StrictSchema",
    "cached_schema",
    "json_object",
    "load",
]


class StrictSchema(NullIsAbsentSchema):
    """Refuses names that it does not know."""

    class Meta:
        unknown = RAISE


class Name(fields.String):
    """Text that names a thing or a path: no control characters, NUL among them."""

    default_error_messages = {
        "control": "Must not hold control characters (such as NUL or a line break).",
        "invalid": "Must be text.",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        found = super()._deserialize(value, attr, data, **kwargs)
        if isinstance(found, str) and has_control_characters(found):
            raise self.make_error("control")
        return found


class Flag(fields.Boolean):
    """True or false, and nothing that merely looks like it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(truthy={True}, falsy={False}, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            # 1 is equal to true, and so in a set of it.
            raise self.make_error("invalid", input=value)
        return value


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
        written = decode(raw) if isinstance(raw, bytes) else raw
        body = json.loads(written, parse_constant=_refuse_constant)
        require_whole_characters(written, body)
    except NotText as error:
        field = error.field or (field_with_half_a_character(raw) if isinstance(raw, bytes) else "")
        whose = f"'{field}'" if field else what
        raise InvalidRequest.of("invalid_text", field, f"{whose} {error}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest.of("invalid_json", "", f"{what} is not valid JSON{_where(error)}") from error
    if not isinstance(body, dict):
        raise InvalidRequest.of("invalid_json", "", f"{what} must be a JSON object")
    return body


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _where(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f": {error.msg} at line {error.lineno}, column {error.colno}"
    return ": it is nested too deeply" if isinstance(error, RecursionError) else ""


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


_WRONG_TYPE = (
    *("Not a valid", "Field may not be null", "Must be a whole number.", "Must be a number.", "Must be text."),
    "Must be 'auto' or a",
)


def _kind(text: str) -> str:
    """A stable word for one of marshmallow's sentences."""
    if text.startswith("Missing data"):
        return "required"
    if text.startswith("Unknown field"):
        return "unknown_field"
    if text.startswith(_WRONG_TYPE):
        return "invalid_type"
    return "invalid_text" if text.startswith("Must not hold control") else "invalid_value"
