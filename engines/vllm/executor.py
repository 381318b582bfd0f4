"""vLLM's one-process executor, whose engine core dies with the worker that started it.

vLLM's engine core is a process of its own, and lives on, GPU memory and all, when its worker is killed.
The kernel ends it instead. The executor is where it is set up, because it is the one thing of ours
that runs in the core. Named in the engine's arguments by its path; not imported by the worker.
"""

import multiprocessing

from vllm.v1.executor.uniproc_executor import UniProcExecutor

from child_process import die_with_parent


class GuardedUniProcExecutor(UniProcExecutor):
    """Computes in the engine core's own process."""

    def _init_executor(self) -> None:
        parent = multiprocessing.parent_process()
        # In the worker's own process (the synchronous engine may be asked so) there is nobody to die with.
        if parent is not None:
            die_with_parent(parent=parent.pid)
        super()._init_executor()
