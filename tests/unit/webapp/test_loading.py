"""Bodies are read leniently where clients are lenient."""

from typing import Any

import pytest
from marshmallow import validate

from configuration.fields import Integer, Number
from services.errors import InvalidRequest
from webapp.schemas.inference import InferenceSchema
from webapp.schemas.loading import Name, StrictSchema, json_object, load


class Sample(StrictSchema):
    name = Name(required=True)
    count = Integer(load_default=3, validate=validate.Range(min=1))
    share = Number(load_default=0.5)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"name": "a", "count": None, "share": None}, {"name": "a", "count": 3, "share": 0.5}),
        ({"name": "a", "count": 100.0, "share": 1}, {"name": "a", "count": 100, "share": 1.0}),
    ],
)
def test_null_is_not_given_and_a_whole_float_is_whole(body: dict[str, Any], found: dict[str, Any]) -> None:
    assert load(Sample, body) == found


@pytest.mark.parametrize(
    ("body", "field", "kind"),
    [
        ({"name": None}, "name", "invalid_type"),
        ({}, "name", "required"),
        ({"name": "a", "other": None}, "other", "unknown_field"),
        ({"name": "a\0"}, "name", "invalid_text"),
        ({"name": 5}, "name", "invalid_type"),
        ({"name": "a", "count": 1.5}, "count", "invalid_type"),
        ({"name": "a", "count": "5"}, "count", "invalid_type"),
        ({"name": "a", "count": True}, "count", "invalid_type"),
        ({"name": "a", "count": 10**30}, "count", "invalid_value"),
        ({"name": "a", "share": 10**400}, "share", "invalid_value"),
    ],
)
def test_what_is_refused_names_the_field(body: dict[str, Any], field: str, kind: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(Sample, body)
    [detail] = caught.value.failure.details
    assert (detail.field, detail.type) == (field, kind)


def test_nested_nulls_take_their_defaults() -> None:
    body = {"modelId": "m", "prompt": "x", "generation": None, "metadata": {"trace_id": None}, "adapter": None}
    loaded = load(InferenceSchema, body)
    assert loaded["generation"] == {}
    assert loaded["metadata"] == {}
    assert loaded["adapter"] == ""


@pytest.mark.parametrize("raw", [b"NaN", b"[1]", b'{"a": Infinity}', b"{", b""])
def test_what_is_no_json_object(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        json_object(raw)
