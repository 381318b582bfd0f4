"""One entry of the model file -> a checked :class:`ModelSpec`. Keys are in snake_case or camelCase."""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from marshmallow import RAISE, ValidationError, validate
from marshmallow import fields as ma

from configuration.fields import Integer, NullIsAbsentSchema, Number
from engines.engine_args import checked_engine_args, require_plain_speculation, snake
from engines.errors import ConfigError
from engines.model_spec import CONTEXT, GenerationDefaults, ModelSpec, Task
from engines.models.sources import SOURCES, source_name
from text import quote

#: Model ids appear in queue names and URLs.
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
#: Only the asynchronous engine has vLLM's pooling models; the fake one has neither.
_POOLING_ENGINE = "cuda-vllm-async"


class _DefaultMaxTokens(Integer):
    """A number of tokens, or the word ``context``."""

    default_error_messages = {"invalid": "Must be a whole number from 1, or 'context'."}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if value == CONTEXT:
            return value
        found = super()._deserialize(value, attr, data, **kwargs)
        if found is None or found < 1:
            raise self.make_error("invalid", input=value)
        return found


def _flag() -> ma.Boolean:
    return ma.Boolean(truthy={True}, falsy={False})


def _name() -> ma.String:
    return ma.String(validate=validate.Length(min=1, max=64))


class _EntrySchema(NullIsAbsentSchema):
    class Meta:
        unknown = RAISE

    model_path = ma.String(required=True, validate=validate.Length(min=1))
    name = ma.String()
    aliases = ma.List(ma.String(validate=validate.Regexp(_MODEL_ID, error="Must be as an id is.")))
    task = ma.String(validate=validate.OneOf(Task.ALL))
    engine = ma.String()
    prompt_format = ma.String(validate=validate.OneOf(["chat", "raw"]))
    chat_template = ma.String(validate=validate.Length(min=1))
    max_model_len = Integer(validate=validate.Range(min=1))
    max_num_seqs = Integer(validate=validate.Range(min=1))
    gpu_memory_utilization = Number(validate=validate.Range(min=0, min_inclusive=False, max=1))
    kv_cache_memory_bytes = Integer(validate=validate.Range(min=1))
    tensor_parallel_size = Integer(validate=validate.Range(min=1))
    dtype = ma.String(validate=validate.OneOf(["auto", "half", "float16", "bfloat16", "float", "float32"]))
    quantization = ma.String()
    kv_cache_dtype = ma.String()
    enable_prefix_caching = _flag()
    enforce_eager = _flag()
    max_logprobs = Integer(validate=validate.Range(min=-1))
    speculative_config = ma.Dict(keys=ma.String())
    limit_mm_per_prompt = ma.Dict(keys=ma.String(), values=Integer(validate=validate.Range(min=0)))
    engine_args = ma.Dict(keys=ma.String())
    adapter_path = ma.String()
    enable_lora = _flag()
    max_loras = Integer(validate=validate.Range(min=1))
    max_lora_rank = Integer(validate=validate.OneOf([8, 16, 32, 64, 128, 256, 320, 512]))
    pinned = _flag()
    sleep_mode = _flag()
    max_pending = Integer(validate=validate.Range(min=1))
    allow_auto_tuning = _flag()
    default_max_tokens = _DefaultMaxTokens()
    generation_defaults = ma.String(validate=validate.OneOf([GenerationDefaults.DOCUMENT, GenerationDefaults.MODEL]))
    tool_call_parser = _name()
    enable_auto_tools = _flag()
    reasoning_parser = _name()
    chunk_merge_ms = Integer(validate=validate.Range(min=0, max=1000))
    stream_chunk_size = Integer(validate=validate.Range(min=1))
    tokens_per_second = Number(validate=validate.Range(min=0))
    start_seconds = Number(validate=validate.Range(min=0))


def is_model_id(name: str) -> bool:
    """Whether a model may be called so."""
    return bool(_MODEL_ID.match(name))


def snake_keys(model_id: str, entry: Any) -> dict[str, Any]:
    """Return an entry as it was written, by keys in snake_case. Raises ``ConfigError``."""
    if not is_model_id(model_id):
        raise ConfigError(f"model {model_id!r}: an id is 1 to 64 letters, digits, '.', '_' or '-'")
    if not isinstance(entry, dict):
        raise ConfigError(f"model {model_id!r}: an entry must be an object, not {type(entry).__name__}")
    values = {snake(key): value for key, value in entry.items()}
    if len(values) < len(entry):
        raise ConfigError(f"model {model_id!r}: a key is given in both snake_case and camelCase")
    return values


def parse_entry(model_id: str, entry: Any, base: Path, models_root: Path) -> ModelSpec:
    """Return the model that an entry describes; relative paths start at ``base``. Raises ``ConfigError``."""
    values = snake_keys(model_id, entry)
    try:
        loaded = _EntrySchema().load(values)
    except ValidationError as error:
        raise ConfigError(_describe(model_id, error)) from error
    loaded["engine_args"] = checked_engine_args(model_id, loaded.get("engine_args") or {})
    if loaded.get("speculative_config"):
        require_plain_speculation(model_id, loaded["speculative_config"])
    loaded["aliases"] = tuple(loaded.get("aliases") or ())
    if loaded.get("adapter_path"):
        loaded["adapter_path"] = _locate(loaded["adapter_path"], base)
    if loaded.get("chat_template") and not is_template_text(loaded["chat_template"]):
        loaded["chat_template"] = _local_path(loaded["chat_template"], base)
    loaded.setdefault("name", model_id)
    name = source_name(loaded["model_path"])
    if name is not None and name not in SOURCES:
        raise ConfigError(f"model {model_id!r}: 'model_path' names the source {name!r}; known: {', '.join(SOURCES)}")
    location = _locate(loaded["model_path"], base) if name is None else str(models_root / name)
    spec = ModelSpec(id=model_id, location=location, **loaded)
    _require_consistent(spec)
    return spec


def is_template_text(value: str) -> bool:
    """Whether a ``chat_template`` is the template itself, and not the name of a file."""
    return "{" in value or "\n" in value


def _require_consistent(spec: ModelSpec) -> None:
    if spec.generates:
        return
    if spec.engine != _POOLING_ENGINE:
        raise ConfigError(
            f"model {spec.id!r}: task {spec.task!r} needs engine {_POOLING_ENGINE!r}, not {spec.engine!r}"
        )
    for key in ("tool_call_parser", "reasoning_parser", "speculative_config"):
        if getattr(spec, key) is not None:
            raise ConfigError(f"model {spec.id!r}: {key!r} is for models that generate, and its task is {spec.task!r}")
    if spec.takes_adapters:
        raise ConfigError(f"model {spec.id!r}: adapters are for models that generate, and its task is {spec.task!r}")


def _describe(model_id: str, error: ValidationError) -> str:
    key, problems = next(iter(error.messages_dict.items()))
    if key not in _EntrySchema().fields:
        allowed = ", ".join(_EntrySchema().fields)
        return f"model {model_id!r}: unknown key {key!r}; allowed keys: {allowed}"
    default = {each.name: each.default for each in fields(ModelSpec)}[key]
    hint = "" if default in (MISSING, None, "", ()) else f" (default: {default})"
    return f"model {model_id!r}: key {key!r}: {' '.join(_sentences(problems))}{hint}"


def _sentences(problems: Any) -> list[str]:
    """Flatten marshmallow's messages; those of a part name it."""
    if isinstance(problems, dict):
        return [f"{part}: {sentence}" for part, nested in problems.items() for sentence in _sentences(nested)]
    return [str(problem) for problem in problems]


def _locate(path: str, base: Path) -> str:
    """A path beside the model file becomes absolute; a name on the model hub stays."""
    local = _local_path(path, base)
    return local if path.startswith((".", "/", "~")) or Path(local).exists() else path


def _local_path(path: str, base: Path) -> str:
    try:
        local = (base / Path(path).expanduser()).resolve()
        local.exists()
        return str(local)
    except (OSError, ValueError, RuntimeError) as error:
        # Too long a name, NUL, ``~nobody``.
        raise ConfigError(f"{quote(path)} cannot be used as a path: {error}") from None
