"""JSON values as marshmallow fields, for bodies and for the model file: lenient where clients are."""

from typing import Any

from marshmallow import Schema, fields, pre_load

from text import MAX_INTEGER


class Number(fields.Float):
    """A JSON number; unlike its parent, never a string."""

    default_error_messages = {"invalid": "Must be a number."}

    def _validated(self, value: Any) -> float:
        if type(value) not in (int, float):
            raise self.make_error("invalid", input=value)
        try:
            return super()._validated(value)
        except OverflowError:
            # An integer of four hundred digits is JSON.
            raise self.make_error("too_large", input=value) from None


class Integer(fields.Integer):
    """A whole JSON number of 64 bits. ``100.0`` is one: JSON has one kind of number, and some languages write it so."""

    default_error_messages = {
        "invalid": "Must be a whole number.",
        "too_large": "Must be a whole number below 2^63.",
    }

    def _validated(self, value: Any) -> int:
        if type(value) not in (int, float) or value != value or value in (float("inf"), float("-inf")):
            raise self.make_error("invalid", input=value)
        if value != int(value):
            raise self.make_error("invalid", input=value)
        if abs(value) > MAX_INTEGER:
            raise self.make_error("too_large", input=value)
        return int(value)


class NullIsAbsentSchema(Schema):
    """A schema to which ``null`` is what is not given: clients in Java, Go and C# write every optional field so."""

    @pre_load
    def drop_nulls(self, data: Any, **_: Any) -> Any:
        """Leave out what is null; but not what is required, nor names that the schema does not know: those are told."""
        if not isinstance(data, dict) or None not in data.values():
            return data
        optional = {name for name, field in self.fields.items() if not field.required}
        return {name: value for name, value in data.items() if value is not None or name not in optional}
