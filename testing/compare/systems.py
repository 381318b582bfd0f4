"""The two that are compared, and what each is loaded with."""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.model_spec import ModelSpec, Task
from engines.models.fetch import require_fetched
from settings import ROOT
from testing.bare_vllm import BareVllm
from testing.processes import children, cpu
from testing.stack import Stack

DEMO = ROOT / "models" / "demo"
ENGINE = {"max_model_len": 2048, "kv_cache_memory_bytes": 2**29, "enforce_eager": True, "max_num_seqs": 256}
#: How long an engine may take to load. Seconds.
_LOAD_SECONDS = 900


@dataclass(frozen=True)
class Load:
    """Tokens in and out of each request, and how requests come.

    Closed: ``streams`` at a time, the next when one has ended. Open: ``rate`` requests a second on average, whenever
    they come (Poisson), for about ``seconds``.
    """

    tokens_in: int
    tokens_out: int
    streams: int = 0
    rate: float = 0.0
    seconds: float = 12.0
    #: Requests of each stream; fewer where a slow model would take long.
    each: int = 6
    #: How many requests, where that is not left to the load.
    count: int = 0

    @property
    def requests(self) -> int:
        if self.count:
            return self.count
        if self.rate:
            return max(20, round(self.rate * self.seconds))
        return max(8 if self.each < 6 else 16, (self.each if self.streams < 256 else 2) * self.streams)

    @property
    def warming(self) -> "Load":
        """What goes before it: a system that has stood idle begins slowly, the more the more code it has."""
        streams = min(self.streams, 16) or 16
        return Load(self.tokens_in, self.tokens_out, streams=streams, count=max(4, 2 * streams))

    @property
    def shape(self) -> str:
        return f"{self.tokens_in}/{self.tokens_out}"

    @property
    def name(self) -> str:
        return f"{self.rate:.1f} requests/s" if self.rate else str(self.streams)


@dataclass(frozen=True)
class Subject:
    """The model that both serve."""

    id: str
    #: Its folder, or its name on the hub: the client takes the tokenizer from there.
    location: str
    #: Its entry in a model file.
    entry: Mapping[str, Any]
    #: What vLLM is told of it, by the names of its command line.
    options: Mapping[str, Any]
    #: The same, as words of its command line.
    words: tuple[str, ...] = ()
    one_process: bool = True


def folder_subject(model: Path) -> Subject:
    """A model's folder, with engine arguments that fit a small machine."""
    return Subject("demo", str(model), {"model_path": str(model), **ENGINE}, ENGINE)


def entry_subject(spec: ModelSpec, entry: Mapping[str, Any]) -> Subject:
    """A model of an installation, with the engine arguments that its entry names; without its adapter.

    Raises ``ValueError``, ``EngineStartError`` (it has not been fetched) and ``ConfigError``.
    """
    if spec.engine == "fake" or spec.task != Task.GENERATE:
        raise ValueError(f"model {spec.id!r}: only what vLLM generates with is compared")
    require_fetched(spec)
    from engines.vllm.arguments import command_line

    # Bare vLLM computes with an adapter only where a request names it.
    kept = {name: value for name, value in entry.items() if name not in ("adapter_path", "aliases", "pinned")}
    kept |= {"model_path": spec.location, "enable_lora": spec.takes_adapters}
    if spec.chat_template is not None:
        kept["chat_template"] = spec.chat_template
    return Subject(spec.id, spec.location, kept, {}, tuple(command_line(spec)), spec.tensor_parallel_size == 1)


@dataclass
class System:
    """One of the two."""

    name: str
    url: str
    #: Processes whose CPU time counts.
    pids: Callable[[], list[int]]

    def cpu(self) -> float:
        """Return the seconds of CPU time that it has used, but for its engine core."""
        return sum(cpu(pid) for pid in self.pids())


@dataclass
class Starter:
    """Starts the two, this system and what it is compared with; ends them with its block."""

    subject: Subject
    #: Another checkout of this system, to stand in for ``vllm serve``.
    against: Path | None
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Starter":
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cy-llm-compare-")))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def this(self) -> System:
        return self._system("this system", ROOT)

    def other(self) -> System:
        if self.against is not None:
            return self._system("the other checkout", self.against)
        subject = self.subject
        server = BareVllm(
            *(self._folder, subject.id, subject.location, subject.options),
            words=subject.words,
            one_process=subject.one_process,
            seconds=_LOAD_SECONDS,
        )
        self._stack.callback(server.stop)
        return System("vllm serve", server.base, lambda: [server.process.pid])

    def _system(self, name: str, root: Path) -> System:
        """Start one worker and a front door from a checkout."""
        stack = Stack(self._folder / name.replace(" ", "-"), {self.subject.id: dict(self.subject.entry)}, root=root)
        self._stack.callback(stack.close)
        worker = stack.start_worker("own", ["-c", "300"], seconds=_LOAD_SECONDS)
        web = children(stack.start_web().pid)
        return System(name, f"http://127.0.0.1:{stack.openai_port}", lambda: [*web, worker.pid, stack.redis.pid])
