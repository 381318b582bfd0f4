"""What the front door itself checks of an OpenAI body; the rest is the engine's to judge."""

from marshmallow import INCLUDE, fields, validate

from webapp.schemas.loading import Integer, Name, NullIsAbsentSchema, Number

#: Answers to one prompt. OpenAI's own bound; each takes a place in the batch.
_MAX_ANSWERS = 128


class _Including(NullIsAbsentSchema):
    class Meta:
        unknown = INCLUDE


class MessageSchema(_Including):
    role = fields.String(required=True, validate=validate.Length(min=1))


class GenerationSchema(_Including):
    """What chat and completions have in common."""

    model = Name(validate=validate.Length(min=1, max=256))
    max_tokens = Integer(validate=validate.Range(min=1))
    n = Integer(validate=validate.Range(min=1, max=_MAX_ANSWERS))
    temperature = Number(validate=validate.Range(min=0.0, max=2.0))
    top_p = Number(validate=validate.Range(min=0.0, max=1.0, min_inclusive=False))
    repetition_penalty = Number(validate=validate.Range(min=0.0, min_inclusive=False))
    # Objects: vLLM reads into them before it looks what they are.
    stream_options = fields.Dict()
    logit_bias = fields.Dict()
    response_format = fields.Dict()
    structured_outputs = fields.Dict()
    stream = fields.Boolean(truthy={True}, falsy={False})
    #: As in the native interface: 0 to 9, higher is served first. vLLM's own field would have no bounds.
    priority = Integer(validate=validate.Range(min=0, max=9))


class ChatSchema(GenerationSchema):
    """``/v1/chat/completions``."""

    messages = fields.List(fields.Nested(MessageSchema), required=True, validate=validate.Length(min=1))
    max_completion_tokens = Integer(validate=validate.Range(min=1))
    tools = fields.List(fields.Dict())
    chat_template_kwargs = fields.Dict()


class CompletionSchema(GenerationSchema):
    """``/v1/completions``: a text, several, or their tokens."""

    prompt = fields.Raw(required=True)
