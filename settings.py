"""Every environment variable the system reads, typed and described, in one place.

Nothing else reads ``os.environ``. ``Settings.from_env()`` is called once per process, at its entry
point, and handed down. An unreadable value raises ``environs.EnvValidationError``, which names the
variable. ``docs/configuration.md`` is generated from the descriptions here.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from environs import Env, validate

ROOT = Path(__file__).resolve().parent

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
#: What a child process that needs no configuration still needs of the environment.
_CHILD_VARIABLES = (
    *("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN"),
)

Reader = Callable[[Env, str, Any], Any]


def _text(env: Env, name: str, default: Any) -> str:
    return env.str(name, default)


def _int(env: Env, name: str, default: Any) -> int:
    return env.int(name, default)


def _float(env: Env, name: str, default: Any) -> float:
    return env.float(name, default)


def _level(env: Env, name: str, default: Any) -> str:
    return env.str(name, default, validate=validate.OneOf(_LEVELS))


def _words(env: Env, name: str, default: Any) -> tuple[str, ...]:
    return tuple(env.list(name, list(default)))


def _path(env: Env, name: str, default: Any) -> Path:
    return env.path(name, default).expanduser().resolve()


def _optional_path(env: Env, name: str, default: Any) -> Path | None:
    text = env.str(name, "")
    return Path(text).expanduser().resolve() if text else default


def _paths(env: Env, name: str, default: Any) -> tuple[Path, ...]:
    """Several paths with ':' between them, as in PATH."""
    found = [Path(part) for part in env.str(name, "").split(":") if part] or default
    return tuple(path.expanduser().resolve() for path in found)


def _var(name: str, default: Any, read: Reader, doc: str, *, secret: bool = False, shown: str = "") -> Any:
    """A field read from the variable ``name``. ``shown`` is the default's words, where its value says little."""
    metadata = {"variable": name, "read": read, "doc": doc, "shown": shown}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The configuration of one process. Times are in seconds, sizes in bytes."""

    redis_url: str = _var(
        "REDIS_URL",
        "redis://127.0.0.1:6379/0",
        _text,
        "`redis://`, `rediss://` or `unix://` address that every "
        "process shares; `bin/serve` starts a private Redis under `var/` where it is unset",
    )
    database_url: str = _var(
        "DATABASE_URL",
        f"sqlite:///{ROOT / 'var' / 'cy-llm.db'}",
        _text,
        "SQLAlchemy address of SQLite or PostgreSQL",
        shown="`sqlite:///` in `CY_LLM_VAR`",
    )
    var: Path = _var(
        "CY_LLM_VAR",
        ROOT / "var",
        _path,
        "folder of what this machine keeps: the private Redis, SQLite, logs, the key that was made",
        shown="`var`",
    )
    config_path: Path = _var("CY_LLM_CONFIG", ROOT / "config.json", _path, "the model file", shown="`config.json`")
    adapters_root: Path = _var(
        "CY_LLM_ADAPTERS_ROOT",
        ROOT / "adapters",
        _path,
        "trained adapters, and where a request's `adapter` is looked up",
        shown="`adapters`",
    )
    data_roots: tuple[Path, ...] = _var(
        "CY_LLM_DATA_ROOTS",
        (ROOT / "var" / "data", ROOT / "demo"),
        _paths,
        "folders that a `datasetPath` may lie in, with `:` between them",
        shown="`var/data:demo`",
    )
    outputs_root: Path = _var(
        "CY_LLM_OUTPUTS_ROOT",
        ROOT / "var" / "outputs",
        _path,
        "the folder that an `outputDir` lies in",
        shown="`var/outputs`",
    )
    trainable_models: tuple[str, ...] = _var(
        "CY_LLM_TRAINABLE_MODELS",
        (),
        _words,
        "base models that may be trained beside those of the model file: folders "
        "or hub names, with commas between them",
    )
    train_processes: int = _var(
        "CY_LLM_TRAIN_PROCESSES", 1, _int, "processes of one training (`accelerate launch`), usually one for each GPU"
    )
    max_restarts: int = _var(
        "CY_LLM_MAX_RESTARTS",
        5,
        _int,
        "how often a training is started again after its trainer or worker was lost, unless the job says",
    )
    dataset_max_bytes: int = _var("CY_LLM_DATASET_MAX_BYTES", 2**30, _int, "largest data set file")
    dataset_max_rows: int = _var("CY_LLM_DATASET_MAX_ROWS", 1_000_000, _int, "most rows of a data set")
    dataset_check_seconds: float = _var(
        "CY_LLM_DATASET_CHECK_SECONDS",
        60.0,
        _float,
        "how long the check of a data set may take, before a job is queued",
    )
    dataset_check_memory_bytes: int = _var(
        "CY_LLM_DATASET_CHECK_MEMORY_BYTES", 4 * 2**30, _int, "address space that such a check may use"
    )

    api_key: str = _var(
        "CY_LLM_API_KEY", "", _text, "a key with every scope; `bin/serve` makes one where it is unset", secret=True
    )
    gateway_api_token: str = _var("GATEWAY_API_TOKEN", "", _text, "a token for `/v1` alone", secret=True)
    internal_token: str = _var(
        "CY_LLM_INTERNAL_TOKEN", "", _text, "a token with every scope, as older gRPC clients send it", secret=True
    )

    host: str = _var(
        "CY_LLM_HOST",
        "",
        _text,
        "address that all ports are bound to",
        shown="all addresses; loopback while no key exists",
    )
    port: int = _var("CY_LLM_PORT", 8080, _int, "port of the native API")
    openai_port: int = _var("CY_LLM_OPENAI_PORT", 8000, _int, "port of the OpenAI-compatible API")
    grpc_port: int = _var("CY_LLM_GRPC_PORT", 50051, _int, "port of gRPC")
    grpc_threads: int = _var("CY_LLM_GRPC_THREADS", 512, _int, "calls that the gRPC process answers at once")
    grpc_tls_cert: Path | None = _var(
        "CY_LLM_GRPC_TLS_CERT", None, _optional_path, "certificate of the gRPC port (PEM); together with the key"
    )
    grpc_tls_key: Path | None = _var("CY_LLM_GRPC_TLS_KEY", None, _optional_path, "its private key (PEM)")
    grpc_tls_client_ca: Path | None = _var(
        "CY_LLM_GRPC_TLS_CLIENT_CA",
        None,
        _optional_path,
        "authority of the clients' certificates (PEM); makes TLS mutual",
    )
    web_workers: int = _var("CY_LLM_WEB_WORKERS", 1, _int, "gunicorn processes")
    web_threads: int = _var(
        "CY_LLM_WEB_THREADS",
        512,
        _int,
        "requests that one gunicorn process answers at once; a stream holds one of them to its end",
    )
    max_body_bytes: int = _var("CY_LLM_MAX_BODY_BYTES", 2 * 1024 * 1024, _int, "largest request body")

    engine: str = _var(
        "CY_LLM_ENGINE", "", _text, "replaces every model's engine: `cuda-vllm-async`, `cuda-vllm` or `fake`"
    )
    request_timeout: float = _var(
        "CY_LLM_REQUEST_TIMEOUT_SECONDS", 600.0, _float, "a request that has not ended by then ends with an error"
    )
    keepalive: float = _var(
        "CY_LLM_KEEPALIVE_SECONDS", 8.0, _float, "a stream that is still silent after this long sends a comment line"
    )
    stream_ttl: int = _var("CY_LLM_STREAM_TTL_SECONDS", 600, _int, "how long a finished stream can be read")
    max_queue_size: int = _var(
        "CY_LLM_MAX_QUEUE_SIZE", 1000, _int, "requests that may wait in a queue before new ones are refused"
    )
    requests_per_minute: int = _var(
        "CY_LLM_REQUESTS_PER_MINUTE", 0, _int, "what one API key may send a minute", shown="`0` (no limit)"
    )
    streams_per_key: int = _var(
        "CY_LLM_STREAMS_PER_KEY", 0, _int, "what one API key may have running at once", shown="`0` (no limit)"
    )
    drain: float = _var(
        "CY_LLM_DRAIN_SECONDS",
        30.0,
        _float,
        "how long a worker that was told to stop lets running generations finish",
        shown="`30` (`bin/serve`: `10`)",
    )
    log_level: str = _var("CY_LLM_LOG_LEVEL", "INFO", _level, "`DEBUG`, `INFO`, `WARNING` or `ERROR`")

    @classmethod
    def from_env(cls) -> "Settings":
        """Read the environment; unset variables take the defaults above."""
        env = Env()
        values: dict[str, Any] = {}
        for each in fields(cls):
            values[each.name] = each.metadata["read"](env, each.metadata["variable"], each.default)
        if "DATABASE_URL" not in os.environ:
            values["database_url"] = f"sqlite:///{values['var'] / 'cy-llm.db'}"
        return cls(**values)

    @property
    def broker_url(self) -> str:
        """The Redis address in Celery's spelling (a unix socket has its own scheme)."""
        return self.redis_url.replace("unix://", "redis+socket://", 1)


def child_environment() -> dict[str, str]:
    """Return the environment of a child process: none of this system's keys and addresses, but the model hub's."""
    kept = {name: os.environ[name] for name in _CHILD_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT)}
