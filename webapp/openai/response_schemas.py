"""What the front door itself checks of OpenAI's Responses API; the rest is the engine's to judge."""

from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from webapp.openai.schemas import AnswerSchema
from webapp.schemas.loading import Digits, Integer, Name, NullIsAbsentSchema, Number

#: Members that stand for things which are not here.
_MISSING = {
    "conversation": "Conversations are not kept here; use previous_response_id.",
    "context_management": "What is too long is refused here; leave it out.",
    "n": "A response has one answer.",
    "prompt": "Prompt templates are not kept here; send instructions and input.",
}


class ResponsesSchema(AnswerSchema):
    """``POST /v1/responses``."""

    model = Name(validate=validate.Length(min=1, max=256))
    input = fields.Raw(required=True)
    instructions = fields.String()
    previous_response_id = Name(validate=validate.Length(min=1, max=128))
    store = fields.Boolean(truthy={True}, falsy={False})
    background = fields.Boolean(truthy={True}, falsy={False})
    max_output_tokens = Integer(validate=validate.Range(min=1))
    temperature = Number(validate=validate.Range(min=0.0, max=2.0))
    top_p = Number(validate=validate.Range(min=0.0, max=1.0, min_inclusive=False))
    tools = fields.List(fields.Dict())
    text = fields.Dict()
    reasoning = fields.Dict()
    metadata = fields.Dict()
    priority = Integer(validate=validate.Range(min=0, max=9))

    @validates_schema(skip_on_field_errors=True)
    def _check(self, body: dict[str, Any], **_: Any) -> None:
        for name, sentence in _MISSING.items():
            if body.get(name) is not None:
                raise ValidationError(sentence, name)
        if body.get("background") and body.get("store") is False:
            raise ValidationError("Goes with responses that are kept: leave 'store' out, or send true.", "background")
        if body.get("background") and body.get("include_performance"):
            raise ValidationError("Goes with answers that are waited for.", "include_performance")
        given = body["input"]
        if isinstance(given, str):
            return
        if not isinstance(given, list) or not given:
            raise ValidationError("Must be text, or a list of at least one item.", "input")
        for index, item in enumerate(given):
            if not isinstance(item, dict):
                raise ValidationError("Must be an object.", f"input.{index}")


class RetrieveQuery(NullIsAbsentSchema):
    """``GET /v1/responses/{id}``."""

    stream = fields.Boolean(load_default=False)
    #: The sequence number of the last event that has come.
    starting_after = Digits()


class InputItemsQuery(NullIsAbsentSchema):
    """``GET /v1/responses/{id}/input_items``."""

    limit = Digits(load_default=20, validate=validate.Range(min=1, max=100))
    order = fields.String(load_default="desc", validate=validate.OneOf(["asc", "desc"]))
    after = Name()
