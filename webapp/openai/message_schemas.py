"""What the front door itself checks of the bodies of ``/v1/messages``, Anthropic's API."""

from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from webapp.openai.schemas import AnswerSchema, Including
from webapp.schemas.loading import Integer, Name, Number

#: The least budget for thoughts; Anthropic's bound.
_MIN_BUDGET = 1024


class _MessageSchema(Including):
    role = fields.String(required=True, validate=validate.OneOf(["user", "assistant", "system"]))
    content = fields.Raw(required=True)


class CountTokensSchema(Including):
    """``/v1/messages/count_tokens``."""

    model = Name(required=True, validate=validate.Length(min=1, max=256))
    messages = fields.List(fields.Nested(_MessageSchema), required=True, validate=validate.Length(min=1))
    system = fields.Raw()
    tools = fields.List(fields.Dict())
    tool_choice = fields.Dict()
    thinking = fields.Dict()

    @validates_schema(skip_on_field_errors=True)
    def _check(self, body: dict[str, Any], **_: Any) -> None:
        system = body.get("system")
        if system is not None and not isinstance(system, str | list):
            raise ValidationError("Must be text, or a list of blocks.", "system")
        for index, message in enumerate(body["messages"]):
            if not isinstance(message["content"], str | list):
                raise ValidationError("Must be text, or a list of blocks.", f"messages.{index}.content")


class MessagesSchema(CountTokensSchema, AnswerSchema):
    """``/v1/messages``."""

    max_tokens = Integer(required=True, validate=validate.Range(min=1))
    temperature = Number(validate=validate.Range(min=0.0, max=2.0))
    top_p = Number(validate=validate.Range(min=0.0, max=1.0, min_inclusive=False))
    top_k = Integer(validate=validate.Range(min=-1))
    stop_sequences = fields.List(fields.String(validate=validate.Length(min=1)))
    metadata = fields.Dict()
    output_config = fields.Dict()

    @validates_schema(skip_on_field_errors=True)
    def _check_budget(self, body: dict[str, Any], **_: Any) -> None:
        thinking = body.get("thinking") or {}
        if thinking.get("type") != "enabled":
            return
        budget = thinking.get("budget_tokens")
        if type(budget) is not int or budget < _MIN_BUDGET:
            raise ValidationError(f"Must be a whole number from {_MIN_BUDGET} on.", "thinking.budget_tokens")
        if budget >= body["max_tokens"]:
            raise ValidationError("Must be less than max_tokens.", "thinking.budget_tokens")
