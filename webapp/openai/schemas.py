"""What the front door itself checks of an OpenAI body; the rest is the engine's to judge."""

from typing import Any

from marshmallow import INCLUDE, ValidationError, fields, post_load, validate, validates_schema

from webapp.schemas.loading import Flag, Integer, Name, NullIsAbsentSchema, Number

#: Answers to one prompt. OpenAI's own bound; each takes a place in the batch.
_MAX_ANSWERS = 128
#: Texts of one call; OpenAI's bound.
_MAX_TEXTS = 2048


class Including(NullIsAbsentSchema):
    class Meta:
        unknown = INCLUDE


class MessageSchema(Including):
    role = fields.String(required=True, validate=validate.Length(min=1))


class AnswerSchema(Including):
    """What all calls for an answer have in common."""

    stream = fields.Boolean(truthy={True}, falsy={False})
    #: Ours: the answer tells how fast it came.
    include_performance = Flag()

    @validates_schema(skip_on_field_errors=True)
    def _check_performance(self, body: dict[str, Any], **_: Any) -> None:
        if body.get("include_performance") and body.get("stream"):
            raise ValidationError("Goes with whole answers: a stream is measured by its reader.", "include_performance")


class GenerationSchema(AnswerSchema):
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
    #: 0: nothing but the prompt, with ``echo``; evaluations ask for its logprobs so.
    max_tokens = Integer(validate=validate.Range(min=0))
    best_of = Integer(validate=validate.Range(min=1))

    @validates_schema(skip_on_field_errors=True)
    def _check(self, body: dict[str, Any], **_: Any) -> None:
        if body.get("best_of", 1) != 1 or (body.get("best_of") and body.get("n", 1) > 1):
            raise ValidationError("Of several answers the best is not chosen here: ask for n, and choose.", "best_of")
        if body.get("max_tokens") == 0 and not body.get("echo"):
            raise ValidationError("Must be at least 1, or 0 with 'echo'.", "max_tokens")


class _PoolingSchema(Including):
    """What the endpoints share that answer with numbers."""

    model = Name(validate=validate.Length(min=1, max=256))
    priority = Integer(validate=validate.Range(min=0, max=9))


def _at_most_texts(value: Any) -> None:
    if isinstance(value, list) and not 1 <= len(value) <= _MAX_TEXTS:
        raise ValidationError(f"Must be 1 to {_MAX_TEXTS} texts.")


def _no_empty_text(value: Any) -> None:
    texts = value if isinstance(value, list) else [value]
    for index, text in enumerate(texts):
        if text in ("", []):
            where = f" (number {index})" if isinstance(value, list) else ""
            raise ValidationError(f"A text must not be empty{where}.")


def _texts(required: bool = False) -> fields.Raw:
    """One text or several; the engine judges what each is."""
    return fields.Raw(required=required, validate=_at_most_texts)


class _InputSchema(_PoolingSchema):
    """Texts, or a conversation through the chat template."""

    input = fields.Raw(validate=[_at_most_texts, _no_empty_text])
    messages = fields.List(fields.Nested(MessageSchema), validate=validate.Length(min=1))

    @validates_schema(skip_on_field_errors=True)
    def _check(self, body: dict[str, Any], **_: Any) -> None:
        if ("input" in body) == ("messages" in body):
            raise ValidationError("Give one of 'input' and 'messages'.", "input")


class EmbeddingSchema(_InputSchema):
    """``/v1/embeddings``."""

    dimensions = Integer(validate=validate.Range(min=1))
    encoding_format = fields.String(validate=validate.OneOf(["float", "base64"]))


class ScoreSchema(_PoolingSchema):
    """``/v1/score``: vLLM has two names for each side."""

    text_1 = _texts()
    text_2 = _texts()
    queries = _texts()
    documents = _texts()


class RerankSchema(_PoolingSchema):
    """``/v1/rerank``."""

    query = fields.Raw(required=True)
    documents = _texts(required=True)
    top_n = Integer(validate=validate.Range(min=0))
    return_documents = Flag()

    @post_load
    def _read_documents(self, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        documents = body["documents"]
        if isinstance(documents, list):
            body["documents"] = [_text_of(document) for document in documents]
        return body


def _text_of(document: Any) -> Any:
    """Return a document of Cohere's form, an object with a text, as its text."""
    return document["text"] if isinstance(document, dict) and isinstance(document.get("text"), str) else document


class ClassifySchema(_InputSchema):
    """``/v1/classify``."""
