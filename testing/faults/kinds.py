"""The rows of the matrix: each breaks something while streams run, and mends it afterwards."""

import os
import signal
from abc import ABC, abstractmethod

from testing.processes import children, name_of
from testing.stack import Process, Stack
from testing.waiting import until

_READY_SECONDS = 300.0


class Fleet:
    """Two workers of one model; a lost one is replaced."""

    def __init__(self, stack: Stack, options: list[str]) -> None:
        self.stack = stack
        self._options = options
        self._count = 0
        self.workers: list[Process] = []

    def fill(self) -> None:
        """Start workers until two live, and wait until both are ready."""
        self.workers = [worker for worker in self.workers if worker.popen.poll() is None]
        while len(self.workers) < 2:
            self._count += 1
            self.workers.append(self.stack.spawn_worker(f"w{self._count}", self._options))
        for worker in self.workers:
            until(lambda candidate=worker: self.stack.find(candidate.name), _READY_SECONDS, f"{worker.name} is ready")

    def busiest(self) -> Process:
        """The worker that has most requests."""
        loads = {info.name.split("@")[0]: info.in_flight for info in self.stack.fleet().living}
        return max(self.workers, key=lambda worker: loads.get(worker.name, 0))


class Fault(ABC):
    """One kind of fault."""

    name: str

    @abstractmethod
    def inject(self, fleet: Fleet) -> None:
        """Break something; streams are running."""

    def restore(self, fleet: Fleet) -> None:
        """All streams have ended: make the fleet whole again."""
        fleet.fill()


class Undisturbed(Fault):
    name = "nothing (reference)"

    def inject(self, fleet: Fleet) -> None:
        """Nothing happens."""


class WorkerKilled(Fault):
    name = "worker kill -9"

    def inject(self, fleet: Fleet) -> None:
        victim = fleet.busiest()
        # As when a machine goes: the engine's processes go with the worker.
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait(10)


class EngineKilled(Fault):
    name = "engine process kill -9"

    def inject(self, fleet: Fleet) -> None:
        victim = fleet.busiest()
        [engine] = [pid for pid in children(victim.pid) if "EngineCore" in name_of(pid)]
        os.kill(engine, signal.SIGKILL)

    def restore(self, fleet: Fleet) -> None:
        for worker in fleet.workers:
            if not any("EngineCore" in name_of(pid) for pid in children(worker.pid)):
                worker.wait(60)
        fleet.fill()


class WorkerFrozen(Fault):
    name = "worker SIGSTOP"

    def __init__(self) -> None:
        self._frozen: Process | None = None

    def inject(self, fleet: Fleet) -> None:
        self._frozen = fleet.busiest()
        os.kill(self._frozen.pid, signal.SIGSTOP)

    def restore(self, fleet: Fleet) -> None:
        assert self._frozen is not None
        os.kill(self._frozen.pid, signal.SIGCONT)
        fleet.fill()
        name = self._frozen.name

        def idle() -> bool:
            return all(info.in_flight == 0 for info in fleet.stack.fleet().living if info.name.startswith(f"{name}@"))

        until(idle, 30, "the woken worker has given up what it had")


class RedisRestarted(Fault):
    name = "Redis restarted with its file"

    def inject(self, fleet: Fleet) -> None:
        fleet.stack.redis.stop()
        fleet.stack.redis.start()


class WebKilled(Fault):
    name = "web process kill -9, clients resume"

    def inject(self, fleet: Fleet) -> None:
        web = next(process for process in fleet.stack.processes if process.name == "web")
        for child in children(web.pid):
            os.kill(child, signal.SIGKILL)


class Rolling(Fault):
    name = "both workers replaced, one by one"

    def inject(self, fleet: Fleet) -> None:
        for worker in list(fleet.workers):
            worker.signal(signal.SIGTERM)
            worker.wait(90)
            fleet.fill()


FAULTS: list[Fault] = [
    Undisturbed(),
    WorkerKilled(),
    EngineKilled(),
    WorkerFrozen(),
    RedisRestarted(),
    WebKilled(),
    Rolling(),
]
