"""The contract of an engine. Implementations live in a module each, named in ``ENGINES``."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from pathlib import Path

from prometheus_client import CollectorRegistry

from engines.errors import ConfigError, EngineError
from engines.model_spec import ModelSpec
from engines.types import Chunk, EngineInfo, GenerateRequest, HttpCall, HttpPart, HttpStart

#: Engine name -> ``module:class``. Looked up late, so that naming one imports no vLLM.
ENGINES = {
    "cuda-vllm-async": "engines.vllm.async_engine:VllmAsyncEngine",
    "cuda-vllm": "engines.vllm.sync_engine:VllmSyncEngine",
    "fake": "engines.fake:FakeEngine",
}
#: What makes a folder a LoRA adapter's.
ADAPTER_CONFIG = "adapter_config.json"
DEFAULT_ENGINE = "cuda-vllm-async"


class Engine(ABC):
    """A loaded model. All methods run on one asyncio loop, the engine's own."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        #: Whether the model is loaded and what compiles at first use is being compiled.
        self.warming = False

    @abstractmethod
    async def start(self) -> None:
        """Load the model; other engines of the loop go on meanwhile. Raises ``EngineStartError``, ``ConfigError``."""

    @abstractmethod
    async def stop(self) -> None:
        """Free everything; it is free when this returns. Running generations end with an error."""

    @property
    def metrics(self) -> CollectorRegistry | None:
        """What the engine counts, for Prometheus; None where it counts nothing."""
        return None

    @property
    def can_sleep(self) -> bool:
        """Whether the engine was started such that it can be put to sleep (``ModelSpec.sleep_mode``)."""
        return False

    async def sleep(self) -> None:
        """Give the device's memory back, the weights kept in the host's. Nothing may run. Raises ``EngineError``."""
        raise EngineError(f"the engine of model {self.spec.id!r} cannot sleep")

    async def wake(self) -> None:
        """Be as before :meth:`sleep`; what was computed of prompts is forgotten. Raises ``EngineError``."""
        raise EngineError(f"the engine of model {self.spec.id!r} cannot sleep")

    @abstractmethod
    def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the text in chunks; the last one has a finish reason and the usage.

        Closing the generator aborts the generation. Raises ``InvalidRequest`` before the
        first chunk, ``EngineDead`` at any time.
        """

    @abstractmethod
    def openai(self, call: HttpCall) -> AsyncGenerator[HttpStart | HttpPart, None]:
        """Answer an OpenAI-compatible call: one ``HttpStart``, then the body's parts.

        Closing the generator aborts the call. Raises ``EngineDead``.
        """

    @abstractmethod
    async def load_adapter(self, path: str) -> None:
        """Load an adapter folder before its first use. Raises ``EngineError``; other requests go on meanwhile."""

    @abstractmethod
    def info(self) -> EngineInfo:
        """Return the engine's limits and present load."""

    @property
    @abstractmethod
    def dead(self) -> bool:
        """Whether the engine has failed for good."""

    def describe_end(self) -> str:
        """Return how a dead engine ended, as far as that is known, for the log: ``its process ended with Killed``."""
        return "why is not known"


def is_adapter_folder(path: str) -> bool:
    """Whether a folder holds a LoRA adapter, by its configuration file."""
    try:
        return (Path(path) / ADAPTER_CONFIG).is_file()
    except (OSError, ValueError):
        # A name that the file system cannot hold.
        return False


def require_known_engine(spec: ModelSpec) -> None:
    """Raise ``ConfigError`` for an engine that does not exist."""
    if spec.engine not in ENGINES:
        raise ConfigError(f"model {spec.id!r}: unknown engine {spec.engine!r}; known engines: {', '.join(ENGINES)}")


def create_engine(spec: ModelSpec) -> Engine:
    """Return the engine that ``spec`` names, not started. Raises ``ConfigError``."""
    require_known_engine(spec)
    module, _, name = ENGINES[spec.engine].partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)(spec)
    return engine
