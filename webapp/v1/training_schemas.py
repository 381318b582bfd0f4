"""Bodies of the training API. Names, defaults and limits are the interface document's; what it lacks is marked."""

from dataclasses import fields as fields_of
from typing import Any

from marshmallow import ValidationError, fields, validate

from engines.training.shapes import SHAPES
from engines.training.spec import HyperParams, LongRows, Method
from store.adapters import valid_name
from webapp.bodies import Number
from webapp.v1.schemas import StrictSchema

_SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "cosine_with_restarts")
_DEFAULTS = {field.name: field.default for field in fields_of(HyperParams)}


def _integer(name: str, low: int, high: int | None = None, default: Any = None) -> fields.Integer:
    value = _DEFAULTS[name] if default is None else default
    return fields.Integer(strict=True, load_default=value, validate=validate.Range(min=low, max=high))


def _number(name: str, low: float, high: float | None = None, low_ok: bool = True, high_ok: bool = True) -> Number:
    limits = validate.Range(min=low, max=high, min_inclusive=low_ok, max_inclusive=high_ok)
    return Number(load_default=_DEFAULTS[name], validate=limits)


def _adapter_name(name: str) -> None:
    if not valid_name(name):
        raise ValidationError("Must be 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first.")


class HyperParamsSchema(StrictSchema):
    """How to train."""

    batchSize = _integer("batch_size", 1, 4096)
    learningRate = _number("learning_rate", 0.0, 1.0, low_ok=False)
    epochs = _number("epochs", 0.0, 10_000, low_ok=False)
    maxSeqLength = _integer("max_seq_length", 8, 1_048_576)
    loraRank = fields.Integer(strict=True, load_default=64, validate=validate.Range(min=1, max=512))
    loraAlpha = Number(load_default=16, validate=validate.Range(min=0, min_inclusive=False))
    loraDropout = Number(load_default=0.05, validate=validate.Range(min=0.0, max=1.0, max_inclusive=False))
    saveSteps = _integer("save_steps", 1)
    evalSteps = _integer("eval_steps", 1)
    # Beyond the document.
    loggingSteps = _integer("logging_steps", 1)
    gradientAccumulationSteps = _integer("gradient_accumulation_steps", 1, 4096)
    warmupRatio = _number("warmup_ratio", 0.0, 1.0, high_ok=False)
    weightDecay = _number("weight_decay", 0.0, 1.0)
    lrScheduler = fields.String(load_default=_DEFAULTS["lr_scheduler"], validate=validate.OneOf(_SCHEDULERS))
    seed = _integer("seed", 0, 2**32 - 1)
    evalSplit = _number("eval_split", 0.0, 1.0, high_ok=False)
    packing = fields.Boolean(load_default=False, truthy={True}, falsy={False})
    beta = _number("beta", 0.0, low_ok=False)


class LoraConfigSchema(StrictSchema):
    """The adapter's shape; a field given here wins over the ``lora*`` hyper-parameter."""

    r = fields.Integer(strict=True, validate=validate.Range(min=1, max=512))
    loraAlpha = Number(validate=validate.Range(min=0, min_inclusive=False))
    loraDropout = Number(validate=validate.Range(min=0.0, max=1.0, max_inclusive=False))
    targetModules = fields.List(
        fields.String(validate=validate.Length(min=1, max=128)), validate=validate.Length(min=1)
    )
    bias = fields.String(load_default="none", validate=validate.OneOf(["none", "all", "lora_only"]))


class QuantizationSchema(StrictSchema):
    """How the frozen base model is loaded (QLoRA)."""

    use4bit = fields.Boolean(load_default=True, truthy={True}, falsy={False})
    bnb4bitComputeDtype = fields.String(
        load_default="bfloat16", validate=validate.OneOf(["bfloat16", "float16", "float32"])
    )
    bnb4bitQuantType = fields.String(load_default="nf4", validate=validate.OneOf(["nf4", "fp4"]))


class TrainingSchema(StrictSchema):
    """A fine-tuning to be started."""

    baseModel = fields.String(required=True, validate=validate.Length(min=1, max=256))
    outputDir = fields.String(required=True, validate=validate.Length(min=1, max=512))
    datasetPath = fields.String(required=True, validate=validate.Length(min=1, max=512))
    hyperParams = fields.Nested(HyperParamsSchema, load_default=lambda: HyperParamsSchema().load({}))
    loraConfig = fields.Nested(LoraConfigSchema, load_default=lambda: LoraConfigSchema().load({}))
    # Beyond the document.
    adapterName = fields.String(load_default="", validate=_adapter_name)
    method = fields.String(load_default=Method.SFT, validate=validate.OneOf([Method.SFT, Method.DPO]))
    datasetFormat = fields.String(load_default="", validate=validate.OneOf([*SHAPES]))
    longRows = fields.String(
        load_default=LongRows.REFUSE, validate=validate.OneOf([LongRows.REFUSE, LongRows.TRUNCATE, LongRows.DROP])
    )
    lora = fields.Boolean(load_default=True, truthy={True}, falsy={False})
    quantization = fields.Nested(QuantizationSchema, load_default=None, allow_none=True)
    export = fields.String(load_default="", validate=validate.OneOf(["merged"]))
    resumeFrom = fields.String(load_default="", validate=validate.Length(min=1, max=128))
    promoteBelow = Number(load_default=None, allow_none=True)
    maxRestarts = fields.Integer(
        strict=True, load_default=None, allow_none=True, validate=validate.Range(min=0, max=1000)
    )
