"""Every environment variable the system reads, typed, in one place.

Nothing else reads ``os.environ``. ``Settings.from_env()`` is called once per process,
at its entry point, and handed down. An unreadable value raises
``environs.EnvValidationError``, which names the variable.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environs import Env, validate

ROOT = Path(__file__).resolve().parent


_LEVELS = validate.OneOf(["DEBUG", "INFO", "WARNING", "ERROR"])


@dataclass(frozen=True)
class Settings:
    """The configuration of one process. Times are in seconds, sizes in bytes."""

    #: ``redis://``, ``rediss://`` or ``unix://`` address shared by every process.
    redis_url: str = "redis://127.0.0.1:6379/0"
    #: SQLAlchemy address.
    database_url: str = f"sqlite:///{ROOT / 'var' / 'cy-llm.db'}"
    #: Folder of what this machine keeps: the private Redis, SQLite, logs, the key that was made.
    var: Path = ROOT / "var"
    #: The model file; see ``engines.registry``.
    config_path: Path = ROOT / "config.json"
    #: Folder that the ``adapter`` of a request is looked up in.
    adapters_root: Path = ROOT / "adapters"

    #: Folders that a client's ``datasetPath`` may lie in, and the one that ``outputDir`` lies in.
    data_roots: tuple[Path, ...] = (ROOT / "var" / "data", ROOT / "demo")
    outputs_root: Path = ROOT / "var" / "outputs"
    #: Base models that may be trained beside those of the model file: folders or hub names.
    trainable_models: tuple[str, ...] = ()
    #: Processes of one training (``accelerate launch``), usually one for each GPU.
    train_processes: int = 1
    #: How often a training is started again after its trainer or worker was lost, unless the job says.
    max_restarts: int = 5

    #: A key with every right, given by the environment.
    api_key: str = field(default="", repr=False)
    #: A token for the OpenAI-compatible API alone.
    gateway_api_token: str = field(default="", repr=False)

    #: A token with every right, for callers inside the deployment (gRPC clients of old have it).
    internal_token: str = field(default="", repr=False)

    #: Address both ports are bound to; empty means all, or loopback while no key exists.
    host: str = ""
    port: int = 8080
    openai_port: int = 8000
    grpc_port: int = 50051
    #: Calls that the gRPC process answers at once.
    grpc_threads: int = 512
    #: TLS of the gRPC port: certificate and key (PEM), and for mutual TLS the authority of the clients' certificates.
    grpc_tls_cert: Path | None = None
    grpc_tls_key: Path | None = None
    grpc_tls_client_ca: Path | None = None
    web_workers: int = 1
    #: Requests that one web process answers at once; a stream holds one of them to its end.
    web_threads: int = 512
    max_body_bytes: int = 2 * 1024 * 1024

    #: Engine that replaces the configured one of every model; empty leaves them.
    engine: str = ""
    #: A request that has not ended by then ends with an error.
    request_timeout: float = 600.0
    #: A stream that is still silent after this long sends a comment line.
    keepalive: float = 8.0
    #: How long a finished stream can be read.
    stream_ttl: int = 600
    #: Requests that may wait in a queue before new ones are refused.
    max_queue_size: int = 1000
    #: What one API key may send a minute, and have running at once; 0 is no limit.
    requests_per_minute: int = 0
    streams_per_key: int = 0
    #: How long a worker that was told to stop lets running generations finish.
    drain: float = 30.0
    log_level: str = "INFO"

    @classmethod
    def from_env(cls) -> "Settings":
        """Read the environment; unset variables take the defaults above."""
        env = Env()
        own = cls()
        with env.prefixed("CY_LLM_"):
            values: dict[str, Any] = {
                "var": _path(env, "VAR", own.var),
                "config_path": _path(env, "CONFIG", own.config_path),
                "adapters_root": _path(env, "ADAPTERS_ROOT", own.adapters_root),
                "data_roots": _paths(env, "DATA_ROOTS", own.data_roots),
                "outputs_root": _path(env, "OUTPUTS_ROOT", own.outputs_root),
                "trainable_models": tuple(env.list("TRAINABLE_MODELS", list(own.trainable_models))),
                "train_processes": env.int("TRAIN_PROCESSES", own.train_processes),
                "max_restarts": env.int("MAX_RESTARTS", own.max_restarts),
                "api_key": env.str("API_KEY", own.api_key),
                "host": env.str("HOST", own.host),
                "port": env.int("PORT", own.port),
                "openai_port": env.int("OPENAI_PORT", own.openai_port),
                "grpc_port": env.int("GRPC_PORT", own.grpc_port),
                "grpc_threads": env.int("GRPC_THREADS", own.grpc_threads),
                "grpc_tls_cert": _optional_path(env, "GRPC_TLS_CERT"),
                "grpc_tls_key": _optional_path(env, "GRPC_TLS_KEY"),
                "grpc_tls_client_ca": _optional_path(env, "GRPC_TLS_CLIENT_CA"),
                "internal_token": env.str("INTERNAL_TOKEN", own.internal_token),
                "web_workers": env.int("WEB_WORKERS", own.web_workers),
                "web_threads": env.int("WEB_THREADS", own.web_threads),
                "max_body_bytes": env.int("MAX_BODY_BYTES", own.max_body_bytes),
                "engine": env.str("ENGINE", own.engine),
                "request_timeout": env.float("REQUEST_TIMEOUT_SECONDS", own.request_timeout),
                "keepalive": env.float("KEEPALIVE_SECONDS", own.keepalive),
                "stream_ttl": env.int("STREAM_TTL_SECONDS", own.stream_ttl),
                "max_queue_size": env.int("MAX_QUEUE_SIZE", own.max_queue_size),
                "requests_per_minute": env.int("REQUESTS_PER_MINUTE", own.requests_per_minute),
                "streams_per_key": env.int("STREAMS_PER_KEY", own.streams_per_key),
                "drain": env.float("DRAIN_SECONDS", own.drain),
                "log_level": env.str("LOG_LEVEL", own.log_level, validate=_LEVELS),
            }
        return cls(
            redis_url=env.str("REDIS_URL", own.redis_url),
            database_url=env.str("DATABASE_URL", f"sqlite:///{values['var'] / 'cy-llm.db'}"),
            gateway_api_token=env.str("GATEWAY_API_TOKEN", own.gateway_api_token),
            **values,
        )

    @property
    def broker_url(self) -> str:
        """The Redis address in Celery's spelling (a unix socket has its own scheme)."""
        return self.redis_url.replace("unix://", "redis+socket://", 1)


def _paths(env: Env, name: str, default: tuple[Path, ...]) -> tuple[Path, ...]:
    """Several paths with ':' between them, as in PATH."""
    text = env.str(name, "")
    found = [Path(part) for part in text.split(":") if part] or default
    return tuple(path.expanduser().resolve() for path in found)


def _optional_path(env: Env, name: str) -> Path | None:
    text = env.str(name, "")
    return Path(text).expanduser().resolve() if text else None


def _path(env: Env, name: str, default: Path) -> Path:
    return env.path(name, default).expanduser().resolve()
