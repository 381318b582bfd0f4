"""What the front door itself checks of an OpenAI body; the rest is the engine's to judge."""

from marshmallow import INCLUDE, Schema, fields, validate

from webapp.schemas.loading import Number

#: The interface document's defaults, for fields that the client leaves out.
DEFAULTS = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.0}
DEFAULT_MAX_TOKENS = 256


class _Including(Schema):
    class Meta:
        unknown = INCLUDE


class MessageSchema(_Including):
    role = fields.String(required=True, validate=validate.Length(min=1))


class ChatSchema(_Including):
    """``/v1/chat/completions``."""

    model = fields.String(load_default="default", validate=validate.Length(min=1))
    messages = fields.List(fields.Nested(MessageSchema), required=True, validate=validate.Length(min=1))
    max_tokens = fields.Integer(strict=True, allow_none=True, validate=validate.Range(min=1))
    max_completion_tokens = fields.Integer(strict=True, allow_none=True, validate=validate.Range(min=1))
    temperature = Number(allow_none=True, validate=validate.Range(min=0.0, max=2.0))
    top_p = Number(allow_none=True, validate=validate.Range(min=0.0, max=1.0, min_inclusive=False))
    repetition_penalty = Number(allow_none=True, validate=validate.Range(min=0.0, min_inclusive=False))
    stream = fields.Boolean(allow_none=True, truthy={True}, falsy={False})
