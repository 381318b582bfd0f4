"""Bodies and queries of ``/v1/fine_tuning/jobs``. Names, bounds and defaults are OpenAI's."""

import re
import secrets
from typing import Any

from flask import request
from marshmallow import EXCLUDE, ValidationError, fields, validate, validates_schema

from engines.training.spec import HyperParams, LongRows, Lora
from services.errors import InvalidRequest
from services.training.fine_tuning import METHODS, OUTPUT_DIR, SUFFIX, AskedHyperParams, FineTuning
from services.training.request import TrainingRequest
from webapp.schemas.loading import Digits, Integer, Name, NullIsAbsentSchema, Number, StrictSchema

_AUTO = "auto"
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_METADATA_FILTER = re.compile(r"metadata\[(.{1,64})\]\Z", re.DOTALL)


class _OrAuto:
    """``auto``, which becomes None; null too, as everywhere."""

    def deserialize(self, value: Any, attr: str | None = None, data: Any = None, **kwargs: Any) -> Any:
        if value is None or value == _AUTO:
            return None
        return super().deserialize(value, attr, data, **kwargs)  # type: ignore[misc]


class _AutoInteger(_OrAuto, Integer):
    default_error_messages = {"invalid": "Must be 'auto' or a whole number."}


class _AutoNumber(_OrAuto, Number):
    default_error_messages = {"invalid": "Must be 'auto' or a number."}


class HyperParametersSchema(StrictSchema):
    """What every method has."""

    n_epochs = _AutoInteger(load_default=None, validate=validate.Range(min=1, max=50))
    batch_size = _AutoInteger(load_default=None, validate=validate.Range(min=1, max=256))
    # The base rate times this must be a rate that can be trained with: below 1.
    learning_rate_multiplier = _AutoNumber(
        load_default=None, validate=validate.Range(min=0.0, min_inclusive=False, max=1000.0)
    )


class DpoHyperParametersSchema(HyperParametersSchema):
    """And what DPO has."""

    beta = _AutoNumber(load_default=None, validate=validate.Range(min=0.0, min_inclusive=False, max=2.0))


class SupervisedSchema(StrictSchema):
    hyperparameters = fields.Nested(HyperParametersSchema, load_default=None)


class DpoSchema(StrictSchema):
    hyperparameters = fields.Nested(DpoHyperParametersSchema, load_default=None)


class MethodSchema(StrictSchema):
    """What is learned."""

    type = fields.String(
        required=True,
        validate=validate.OneOf(
            [*METHODS], error="Must be 'supervised' or 'dpo'; fine-tuning by reinforcement is not done here."
        ),
    )
    supervised = fields.Nested(SupervisedSchema, load_default=None)
    dpo = fields.Nested(DpoSchema, load_default=None)

    @validates_schema(skip_on_field_errors=True)
    def _check(self, body: dict[str, Any], **_: Any) -> None:
        for name in METHODS:
            if name != body["type"] and body.get(name) is not None:
                raise ValidationError(f"The method is '{body['type']}': leave it out.", name)


def _suffix(value: str) -> None:
    if SUFFIX.fullmatch(value) is None:
        raise ValidationError("Must be 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first.")


def check_metadata(value: dict[str, Any]) -> None:
    """OpenAI's bounds of ``metadata``. Raises ``ValidationError``."""
    if len(value) > _MAX_PAIRS:
        raise ValidationError(f"Must have at most {_MAX_PAIRS} pairs.")
    for key, text in value.items():
        if not isinstance(text, str) or not 1 <= len(key) <= _MAX_KEY or len(text) > _MAX_VALUE:
            raise ValidationError(f"Keys are text of 1 to {_MAX_KEY} characters, values text of up to {_MAX_VALUE}.")


def _no_integrations(value: list[Any]) -> None:
    if value:
        raise ValidationError("None is to be had here: a job's metrics are in its events, and in its result file.")


class JobSchema(NullIsAbsentSchema):
    """``POST /v1/fine_tuning/jobs``."""

    class Meta:
        unknown = EXCLUDE

    model = Name(required=True, validate=validate.Length(min=1, max=256))
    training_file = Name(required=True, validate=validate.Length(min=1, max=128))
    validation_file = Name(load_default=None, validate=validate.Length(min=1, max=128))
    suffix = fields.String(load_default="", validate=_suffix)
    seed = Integer(load_default=None, validate=validate.Range(min=0, max=2**31 - 1))
    hyperparameters = fields.Nested(HyperParametersSchema, load_default=None)
    method = fields.Nested(MethodSchema, load_default=None)
    integrations = fields.List(fields.Raw(), load_default=[], validate=_no_integrations)
    metadata = fields.Dict(keys=fields.String(), load_default=dict, validate=check_metadata)

    @validates_schema(skip_on_field_errors=True)
    def _check(self, body: dict[str, Any], **_: Any) -> None:
        old, method = body["hyperparameters"], body["method"] or {}
        new = (method.get(method.get("type", "")) or {}).get("hyperparameters")
        if old is None or (not method and new is None):
            return
        if method["type"] != "supervised" or (new is not None and new != old):
            raise ValidationError("Say it once: in 'method', not here too.", "hyperparameters")


class PageQuery(NullIsAbsentSchema):
    """A page of a list."""

    limit = Digits(load_default=20, validate=validate.Range(min=1, max=1000))
    after = Name(load_default=None, validate=validate.Length(min=1, max=128))


class CheckpointQuery(PageQuery):
    """A page of checkpoints."""

    limit = Digits(load_default=10, validate=validate.Range(min=1, max=1000))


def metadata_filter() -> dict[str, str] | None:
    """Return what the query says of ``metadata``: None for any, {} for ``metadata=null``. Raises ``InvalidRequest``."""
    found = {}
    for name, value in request.args.items():
        match = _METADATA_FILTER.match(name)
        if match is not None:
            found[match[1]] = value
        elif name.startswith("metadata") and (name, value) != ("metadata", "null"):
            description = "Jobs are asked for by 'metadata[KEY]=VALUE', or by 'metadata=null' for those without any"
            raise InvalidRequest.of("invalid_value", "metadata", description)
    return found if found or request.args.get("metadata") == "null" else None


def to_request(body: dict[str, Any], base_model: str, start_adapter: str) -> TrainingRequest:
    """Return a loaded ``JobSchema`` as services take it, for a model and the adapter of it that is trained on."""
    method = (body["method"] or {"type": "supervised"})["type"]
    detailed = ((body["method"] or {}).get(method) or {}).get("hyperparameters")
    asked = FineTuning(
        model=body["model"],
        training_file=body["training_file"],
        validation_file=body["validation_file"],
        method=method,
        # One is made, as OpenAI makes one: asked for again, the job comes to the same.
        seed=secrets.randbelow(2**31) if body["seed"] is None else body["seed"],
        suffix=body["suffix"],
        hyper_params=AskedHyperParams(**(detailed or body["hyperparameters"] or {})),
        metadata=body["metadata"],
    )
    return TrainingRequest(
        base_model=base_model,
        output_dir=OUTPUT_DIR,
        dataset_path=body["training_file"],
        validation_path=body["validation_file"] or "",
        params=HyperParams(),
        lora=Lora(),
        method=METHODS[method],
        long_rows=LongRows.TRUNCATE,
        resume_from=start_adapter,
        fine_tuning=asked,
        body=body,
    )
