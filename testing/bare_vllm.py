"""vLLM's own server, ``vllm serve``, as a process: what this system is compared with."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from testing.stack import free_port
from testing.waiting import until


class BareVllm:
    """``vllm serve`` for one model, with ``options`` named as vLLM's command line names them, and further ``words``.

    ``one_process`` computes in the engine core's own process, ``seconds`` is how long it may take to start.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        model: Path | str,
        options: Mapping[str, Any],
        words: Sequence[str] = (),
        one_process: bool = True,
        seconds: float = 180,
    ) -> None:
        from engines.vllm.cpu import prepare_cpu
        from engines.vllm.internals import ONE_PROCESS_EXECUTOR

        prepare_cpu()
        self.name = name
        self.port = free_port()
        arguments = ["--model", str(model), "--served-model-name", name, "--port", str(self.port)]
        for option, value in options.items():
            arguments += [f"--{option.replace('_', '-')}"] + ([] if value is True else [str(value)])
        # As an engine of this system: of one process on a CPU, and with vLLM's own sampling where nothing is asked.
        if one_process:
            arguments += ["--distributed-executor-backend", ONE_PROCESS_EXECUTOR]
        arguments += ["--generation-config", "vllm", "--disable-uvicorn-access-log", *words]
        self._log = folder / f"vllm-serve-{name}.log"
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
                env={
                    **os.environ,
                    "VLLM_NO_USAGE_STATS": "1",
                    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
                    "PYTHONPATH": str(Path(__file__).parent / "amx"),
                },
            )
        until(self._ready, seconds, f"vllm serve is ready; see {self._log}")

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(self._log.read_text()[-3000:])
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.base}/health", trust_env=False).status_code == 200
        return False

    def stop(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait(10)
