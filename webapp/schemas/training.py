"""Bodies of the training API. Names, defaults and limits are the interface document's; what it lacks is marked."""

import re
from dataclasses import fields as fields_of
from typing import Any

from marshmallow import ValidationError, fields, validate

from engines.training.datasets.formats import FORMATS
from engines.training.spec import HyperParams, LongRows, Lora, Method, Quantization
from services.training.request import TrainingRequest
from store.sql.adapters import valid_name
from store.sql.jobs import JobStatus
from webapp.schemas.loading import Digits, Integer, Name, Number, StrictSchema

_SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "cosine_with_restarts")
#: Where a camelCase name has its words.
_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])")
_DEFAULTS = {field.name: field.default for field in fields_of(HyperParams)}


def _integer(name: str, low: int, high: int | None = None, default: Any = None) -> Integer:
    value = _DEFAULTS[name] if default is None else default
    return Integer(load_default=value, validate=validate.Range(min=low, max=high))


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
    loraRank = Integer(load_default=64, validate=validate.Range(min=1, max=512))
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

    r = Integer(validate=validate.Range(min=1, max=512))
    loraAlpha = Number(validate=validate.Range(min=0, min_inclusive=False))
    loraDropout = Number(validate=validate.Range(min=0.0, max=1.0, max_inclusive=False))
    targetModules = fields.List(Name(validate=validate.Length(min=1, max=128)), validate=validate.Length(min=1, max=64))
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

    baseModel = Name(required=True, validate=validate.Length(min=1, max=256))
    outputDir = Name(required=True, validate=validate.Length(min=1, max=512))
    datasetPath = Name(required=True, validate=validate.Length(min=1, max=512))
    hyperParams = fields.Nested(HyperParamsSchema, load_default=lambda: HyperParamsSchema().load({}))
    loraConfig = fields.Nested(LoraConfigSchema, load_default=lambda: LoraConfigSchema().load({}))
    # Beyond the document.
    adapterName = Name(load_default="", validate=_adapter_name)
    validationPath = Name(load_default="", validate=validate.Length(min=1, max=512))
    method = fields.String(load_default=Method.SFT, validate=validate.OneOf([Method.SFT, Method.DPO]))
    datasetFormat = fields.String(load_default="", validate=validate.OneOf([*FORMATS]))
    longRows = fields.String(
        load_default=LongRows.REFUSE, validate=validate.OneOf([LongRows.REFUSE, LongRows.TRUNCATE, LongRows.DROP])
    )
    lora = fields.Boolean(load_default=True, truthy={True}, falsy={False})
    quantization = fields.Nested(QuantizationSchema, load_default=None)
    export = fields.String(load_default="", validate=validate.OneOf(["merged"]))
    resumeFrom = Name(load_default="", validate=validate.Length(min=1, max=128))
    promoteBelow = Number(load_default=None)
    maxRestarts = Integer(load_default=None, validate=validate.Range(min=0, max=1000))


class JobListSchema(StrictSchema):
    """The query of ``/training/list``."""

    status = fields.Enum(JobStatus, by_value=True, load_default=None)
    limit = Digits(load_default=100, validate=validate.Range(min=0, max=1000))
    offset = Digits(load_default=0, validate=validate.Range(min=0, max=2**31))


def to_request(body: dict[str, Any]) -> TrainingRequest:
    """Return a loaded ``TrainingSchema`` as services take it."""
    given, config, quantization = body["hyperParams"], body["loraConfig"], body["quantization"]
    values = {_CAMEL.sub(lambda match: "_" + match.group(1).lower(), name): value for name, value in given.items()}
    lora = Lora(
        r=config.get("r", values.pop("lora_rank")),
        alpha=config.get("loraAlpha", values.pop("lora_alpha")),
        dropout=config.get("loraDropout", values.pop("lora_dropout")),
        target_modules=tuple(config.get("targetModules", ())),
        bias=config["bias"],
    )
    quantized = quantization is not None and quantization["use4bit"]
    return TrainingRequest(
        base_model=body["baseModel"],
        output_dir=body["outputDir"],
        dataset_path=body["datasetPath"],
        params=HyperParams(**values),
        lora=lora if body["lora"] else None,
        rank_field="loraConfig.r" if "r" in config else "hyperParams.loraRank",
        quantization=Quantization(True, quantization["bnb4bitComputeDtype"], quantization["bnb4bitQuantType"])
        if quantized
        else None,
        adapter_name=body["adapterName"],
        validation_path=body["validationPath"],
        method=body["method"],
        dataset_format=body["datasetFormat"],
        long_rows=body["longRows"],
        export=body["export"],
        resume_from=body["resumeFrom"],
        promote_below=body["promoteBelow"],
        max_restarts=body["maxRestarts"],
        body=body,
    )
