"""Every environment variable the system reads, typed and described, in one place.

Nothing else reads ``os.environ``. ``Settings.from_env()`` is called once per process, at its entry
point, and handed down. An unreadable value raises ``ConfigurationError``: one line, which names the
variable; ``Settings.from_env_or_exit()`` ends the process with it. ``docs/configuration.md`` is generated from
the descriptions here.
"""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from configuration import env
from configuration.database_address import parse_database, sqlite_address
from configuration.env import Parser
from configuration.errors import ConfigurationError
from configuration.listen_address import parse_host
from configuration.redis_address import parse_redis

ROOT = Path(__file__).resolve().parent

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
#: What a child process that needs no configuration still needs of the environment.
_CHILD_VARIABLES = (
    *("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "XDG_CACHE_HOME"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
)

_PORT = env.whole(1, 65_535)
_SECONDS = env.number(0.1, 86_400)
_BYTES = env.whole(1, 2**50)
_COUNT = env.whole(1, 1_000_000)
#: 0 is no limit.
_LIMIT = env.whole(0, 1_000_000_000)


def _redis(value: str) -> str:
    parse_redis(value)
    return value.strip()


def _database(value: str) -> str:
    # As parsed: a relative path starts at the folder that this process was started in, not at a child's.
    parsed = parse_database(value)
    if parsed.get_backend_name() != "sqlite":
        return value.strip()
    query = f"?{value.partition('?')[2]}" if "?" in value else ""
    return f"{sqlite_address(Path(str(parsed.database)))}{query}"


def _var(name: str, default: Any, parse: Parser, doc: str, *, secret: bool = False, shown: str = "") -> Any:
    """A field read from the variable ``name``. ``shown`` is the default's words, where its value says little."""
    metadata = {"variable": name, "parse": parse, "doc": doc, "shown": shown, "secret": secret}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The configuration of one process. Times are in seconds, sizes in bytes."""

    redis_url: str = _var(
        "REDIS_URL",
        "redis://127.0.0.1:6379/0",
        _redis,
        "address that every process shares: `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, `rediss://` for TLS, "
        "`unix:///PATH[?db=DB]` or `sentinel://` (docs/operations.md); `bin/serve` starts a private Redis under `var/` "
        "where it is unset",
        secret=True,
    )
    redis_prefix: str = _var(
        "CY_LLM_REDIS_PREFIX",
        "",
        env.pattern("[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", "1 to 64 letters, digits, '.', '_', ':' or '-'"),
        "what every key, channel and queue in Redis begins with; installations that share a Redis need one each",
    )
    database_url: str = _var(
        "DATABASE_URL",
        sqlite_address(ROOT / "var" / "cy-llm.db"),
        _database,
        "`sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST:PORT/NAME`",
        secret=True,
        shown="`sqlite:///` in `CY_LLM_VAR`",
    )
    var: Path = _var(
        "CY_LLM_VAR",
        ROOT / "var",
        env.path,
        "folder of what this machine keeps: the private Redis, SQLite, logs, the key that was made",
        shown="`var`",
    )
    config_path: Path = _var("CY_LLM_CONFIG", ROOT / "config.json", env.path, "the model file", shown="`config.json`")
    default_model: str = _var(
        "CY_LLM_MODEL",
        "",
        env.pattern("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "the id of a model of the model file"),
        "the model that a request without one gets, instead of the model file's `default`; `bin/serve --model` sets it",
    )
    model_roots: tuple[Path, ...] = _var(
        "CY_LLM_MODEL_ROOTS",
        (ROOT / "models", ROOT / "var" / "models"),
        env.paths,
        "folders that a model's weights may lie in that is added while the service runs, with `:` between them",
        shown="`models:var/models`",
    )
    adapters_root: Path = _var(
        "CY_LLM_ADAPTERS_ROOT",
        ROOT / "adapters",
        env.path,
        "trained adapters, and where a request's `adapter` is looked up",
        shown="`adapters`",
    )
    data_roots: tuple[Path, ...] = _var(
        "CY_LLM_DATA_ROOTS",
        (ROOT / "var" / "data", ROOT / "demo"),
        env.paths,
        "folders that a `datasetPath` may lie in, with `:` between them",
        shown="`var/data:demo`",
    )
    outputs_root: Path = _var(
        "CY_LLM_OUTPUTS_ROOT",
        ROOT / "var" / "outputs",
        env.path,
        "the folder that an `outputDir` lies in",
        shown="`var/outputs`",
    )
    files_root: Path = _var(
        "CY_LLM_FILES_ROOT",
        ROOT / "var" / "files",
        env.path,
        "the folder of files that clients upload (`/v1/files`); front doors, training workers and `cpu-work` share it",
        shown="`files` in `CY_LLM_VAR`",
    )
    max_file_bytes: int = _var(
        "CY_LLM_MAX_FILE_BYTES", 512 * 1024 * 1024, _BYTES, "largest file that a client may upload to `/v1/files`"
    )
    max_files: int = _var("CY_LLM_MAX_FILES", 10_000, _COUNT, "files that one tenant may keep")
    max_stored_bytes: int = _var(
        "CY_LLM_MAX_STORED_BYTES", 100 * 2**30, _BYTES, "what the files of one tenant may hold together"
    )
    batch_lines: int = _var(
        "CY_LLM_BATCH_LINES",
        64,
        _COUNT,
        "requests of batches (`/v1/batches`) that a worker gets at once while nobody else is there",
    )
    trainable_models: tuple[str, ...] = _var(
        "CY_LLM_TRAINABLE_MODELS",
        (),
        env.words,
        "base models that may be trained beside those of the model file: folders "
        "or hub names, with commas between them",
    )
    train_processes: int = _var(
        "CY_LLM_TRAIN_PROCESSES",
        1,
        env.whole(1, 1024),
        "processes of one training (`accelerate launch`), usually one for each GPU",
    )
    max_restarts: int = _var(
        "CY_LLM_MAX_RESTARTS",
        5,
        env.whole(0, 1000),
        "how often a training is started again after its trainer or worker was lost, unless the job says",
    )
    dataset_max_bytes: int = _var("CY_LLM_DATASET_MAX_BYTES", 2**30, _BYTES, "largest data set file")
    dataset_max_rows: int = _var(
        "CY_LLM_DATASET_MAX_ROWS", 1_000_000, env.whole(1, 1_000_000_000), "most rows of a data set"
    )
    dataset_check_seconds: float = _var(
        "CY_LLM_DATASET_CHECK_SECONDS",
        60.0,
        _SECONDS,
        "how long the check of a data set may take, before a job is queued",
    )
    dataset_check_memory_bytes: int = _var(
        "CY_LLM_DATASET_CHECK_MEMORY_BYTES",
        4 * 2**30,
        env.whole(2**26, 2**50),
        "address space that such a check may use",
    )

    api_key: str = _var(
        "CY_LLM_API_KEY", "", env.token, "a key with every scope; `bin/serve` makes one where it is unset", secret=True
    )
    gateway_api_token: str = _var("GATEWAY_API_TOKEN", "", env.token, "a token for `/v1` alone", secret=True)
    internal_token: str = _var(
        "CY_LLM_INTERNAL_TOKEN", "", env.token, "a token with every scope, as older gRPC clients send it", secret=True
    )

    host: str = _var(
        "CY_LLM_HOST",
        "",
        parse_host,
        "address that all ports are bound to",
        shown="all addresses; loopback while no key exists",
    )
    port: int = _var("CY_LLM_PORT", 8080, _PORT, "port of the native API")
    openai_port: int = _var("CY_LLM_OPENAI_PORT", 8000, _PORT, "port of the OpenAI-compatible API")
    grpc_port: int = _var("CY_LLM_GRPC_PORT", 50051, _PORT, "port of gRPC")
    grpc_threads: int = _var("CY_LLM_GRPC_THREADS", 512, _COUNT, "calls that the gRPC process answers at once")
    grpc_tls_cert: Path | None = _var(
        "CY_LLM_GRPC_TLS_CERT", None, env.path, "certificate of the gRPC port (PEM); together with the key"
    )
    grpc_tls_key: Path | None = _var("CY_LLM_GRPC_TLS_KEY", None, env.path, "its private key (PEM)")
    grpc_tls_client_ca: Path | None = _var(
        "CY_LLM_GRPC_TLS_CLIENT_CA",
        None,
        env.path,
        "authority of the clients' certificates (PEM); makes TLS mutual",
    )
    web_workers: int = _var("CY_LLM_WEB_WORKERS", 1, env.whole(1, 1024), "gunicorn processes")
    web_threads: int = _var(
        "CY_LLM_WEB_THREADS",
        512,
        _COUNT,
        "requests that one gunicorn process answers at once; a stream holds one of them to its end",
    )
    cors_origins: tuple[str, ...] = _var(
        "CY_LLM_CORS_ORIGINS",
        ("*",),
        env.words,
        "origins of web pages that may call the APIs from a browser (`https://app.example`), with commas between them; "
        "`*` is any (a page still needs a key), `none` is none; while no key exists it is none",
    )
    max_body_bytes: int = _var("CY_LLM_MAX_BODY_BYTES", 2 * 1024 * 1024, _BYTES, "largest request body, unpacked")

    engine: str = _var(
        "CY_LLM_ENGINE",
        "",
        env.choice("cuda-vllm-async", "cuda-vllm", "fake"),
        "replaces every model's engine: `cuda-vllm-async`, `cuda-vllm` or `fake`",
    )
    request_timeout: float = _var(
        "CY_LLM_REQUEST_TIMEOUT_SECONDS", 600.0, _SECONDS, "a request that has not ended by then ends with an error"
    )
    swap_wait: float = _var(
        "CY_LLM_SWAP_WAIT_SECONDS",
        120.0,
        _SECONDS,
        "how long a request waits for a model that a `--swap` worker has to load first; then it gets 503",
    )
    swap_min_stay: float = _var(
        "CY_LLM_SWAP_MIN_STAY_SECONDS",
        10.0,
        env.number(0, 86_400),
        "how long a `--swap` worker keeps a model at least before another one takes its place; one that is being used, "
        "as long as its loading took",
    )
    swap_max_loaded: int = _var(
        "CY_LLM_SWAP_MAX_LOADED",
        0,
        _LIMIT,
        "models that a `--swap` worker keeps loaded at once; 0 is as many as the memory holds",
    )
    swap_idle: float = _var(
        "CY_LLM_SWAP_IDLE_SECONDS",
        0.0,
        env.number(0, 10_000_000),
        "after how long without a request a `--swap` worker unloads a model; 0 is never",
    )
    keepalive: float = _var(
        "CY_LLM_KEEPALIVE_SECONDS", 8.0, _SECONDS, "a stream that is still silent after this long sends a comment line"
    )
    response_ttl: int = _var(
        "CY_LLM_RESPONSE_TTL_SECONDS",
        86_400,
        env.whole(60, 31_536_000),
        "how long a response of `/v1/responses` can be asked for again, or gone on from",
    )
    max_responses: int = _var(
        "CY_LLM_MAX_RESPONSES",
        1000,
        env.whole(1, 1_000_000),
        "responses kept for each tenant at most; the oldest make room",
    )
    stream_ttl: int = _var(
        "CY_LLM_STREAM_TTL_SECONDS", 600, env.whole(1, 604_800), "how long a finished stream can be read"
    )
    usage_record_days: int = _var(
        "CY_LLM_USAGE_RECORD_DAYS",
        90,
        env.whole(1, 36_500),
        "how long what each request used is kept by itself; older ones are added up by quarters of an hour",
    )
    max_queue_size: int = _var(
        "CY_LLM_MAX_QUEUE_SIZE",
        1000,
        env.whole(0, 1_000_000_000),
        "requests that may wait in a queue before new ones are refused",
    )
    requests_per_minute: int = _var(
        "CY_LLM_REQUESTS_PER_MINUTE", 0, _LIMIT, "what one API key may send a minute", shown="`0` (no limit)"
    )
    tokens_per_minute: int = _var(
        "CY_LLM_TOKENS_PER_MINUTE",
        0,
        _LIMIT,
        "tokens of prompts and answers that one API key may use a minute",
        shown="`0` (no limit)",
    )
    streams_per_key: int = _var(
        "CY_LLM_STREAMS_PER_KEY", 0, _LIMIT, "what one API key may have running at once", shown="`0` (no limit)"
    )
    metrics_token: str = _var(
        "CY_LLM_METRICS_TOKEN",
        "",
        env.token,
        "a token that opens `/metrics` and nothing else, beside keys with the scope `admin`",
        secret=True,
    )
    metrics_host: str = _var(
        "CY_LLM_METRICS_HOST", "127.0.0.1", parse_host, "where workers and the gRPC process show their metrics"
    )
    metrics_port: int = _var(
        "CY_LLM_METRICS_PORT",
        0,
        env.whole(0, 65_535),
        "the port of that; several processes of a host take the next free ones",
        shown="`0` (off; `bin/serve`: 9464)",
    )
    drain: float = _var(
        "CY_LLM_DRAIN_SECONDS",
        30.0,
        env.number(0, 86_400),
        "how long a worker that was told to stop lets running generations finish",
        shown="`30` (`bin/serve`: `10`)",
    )
    log_level: str = _var("CY_LLM_LOG_LEVEL", "INFO", env.choice(*_LEVELS), "`DEBUG`, `INFO`, `WARNING` or `ERROR`")

    @classmethod
    def from_env(cls) -> "Settings":
        """Read the environment; unset and empty variables take the defaults above. Raises ``ConfigurationError``."""
        values: dict[str, Any] = {}
        for each in fields(cls):
            described = each.metadata
            values[each.name] = env.read(
                os.environ, described["variable"], each.default, described["parse"], secret=described["secret"]
            )
        if not env.is_given(os.environ, "DATABASE_URL"):
            values["database_url"] = sqlite_address(values["var"] / "cy-llm.db")
        if not env.is_given(os.environ, "CY_LLM_FILES_ROOT"):
            values["files_root"] = values["var"] / "files"
        return cls(**values)

    @classmethod
    def from_env_or_exit(cls) -> "Settings":
        """As :meth:`from_env`, for the entry point of a process: what is wrong ends it, with one line and no trace."""
        try:
            return cls.from_env()
        except ConfigurationError as error:
            raise SystemExit(f"cy-llm: {error}") from None

    @property
    def models_root(self) -> Path:
        """The folder of models that are fetched."""
        return self.var / "models"

    @property
    def registry_options(self) -> dict[str, Any]:
        """What ``load_registry`` is told beside the model file."""
        return {"engine": self.engine, "default": self.default_model, "models_root": self.models_root}

    def child_paths(self) -> dict[str, str]:
        """Return the variables of paths as absolute ones, for a child that is started in another folder."""
        found = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Path):
                found[each.metadata["variable"]] = str(value)
            elif isinstance(value, tuple) and value and isinstance(value[0], Path):
                found[each.metadata["variable"]] = ":".join(str(path) for path in value)
        return {**found, "DATABASE_URL": self.database_url}


def child_environment() -> dict[str, str]:
    """Return the environment of a child process: none of this system's keys and addresses, but the model hub's."""
    kept = {name: os.environ[name] for name in _CHILD_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT)}
