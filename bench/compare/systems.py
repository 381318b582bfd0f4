"""The two that are compared, and what each is loaded with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.streams import cpu, workers_of
from settings import ROOT
from testing.stack import Stack

#: The name that both serve the model under.
NAME = "demo"
DEMO = ROOT / "models" / "demo"
ENGINE = {"max_model_len": 2048, "kv_cache_memory_bytes": 2**29, "enforce_eager": True, "max_num_seqs": 256}


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

    @property
    def requests(self) -> int:
        if self.rate:
            return max(20, round(self.rate * self.seconds))
        return max(16, 6 * self.streams if self.streams < 256 else 2 * self.streams)

    @property
    def warming(self) -> "Load":
        """What goes before it: a system that has stood idle begins slowly, the more the more code it has."""
        return Load(self.tokens_in, self.tokens_out, streams=min(self.streams, 16) or 16)

    @property
    def shape(self) -> str:
        return f"{self.tokens_in}/{self.tokens_out}"

    @property
    def name(self) -> str:
        return f"{self.rate:.1f} requests/s" if self.rate else str(self.streams)


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


def start_system(name: str, stack: Stack) -> System:
    """Start one worker and a front door from the stack's checkout."""
    worker = stack.start_worker("own", ["-c", "300"], seconds=180)
    web = workers_of(stack.start_web())
    return System(name, f"http://127.0.0.1:{stack.openai_port}", lambda: [*web, worker.pid, stack.redis.pid])


def models(model: Path) -> dict[str, object]:
    """Return a model file for ``model`` with the arguments that both engines get."""
    return {NAME: {"model_path": str(model), **ENGINE}}
