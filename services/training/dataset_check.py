"""Data sets are checked before a job is queued, off the threads that serve clients, within bounds."""

import json
import logging
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from engines.training.datasets.check import CheckRequest, CheckResult
from engines.training.datasets.rows import Problem
from engines.training.spec import HyperParams
from services.errors import CheckBusy, InvalidRequest
from settings import ROOT, Settings, child_environment
from store.token_log.outcomes import Detail

log = logging.getLogger(__name__)

#: Checks that one process runs at once; each takes a core.
_AT_ONCE = 2
#: How long a check waits for its turn. Seconds.
_TURN_SECONDS = 10.0


class DatasetChecker:
    """Runs ``engines.training.datasets.check`` as a child process."""

    def __init__(self, settings: Settings, at_once: int = _AT_ONCE, turn_seconds: float = _TURN_SECONDS) -> None:
        self._settings = settings
        self._turns = threading.BoundedSemaphore(at_once)
        self._turn_seconds = turn_seconds

    def require_usable(
        self, path: Path, location: str, method: str, format: str, long_rows: str, params: HyperParams
    ) -> CheckResult:
        """Check a data set for a base model at ``location``. Raises ``InvalidRequest``, ``CheckBusy``."""
        request = CheckRequest(
            path=str(path),
            method=method,
            format=format,
            tokenizer=location,
            max_tokens=params.max_seq_length,
            long_rows=long_rows,
            eval_split=params.eval_split,
            max_bytes=self._settings.dataset_max_bytes,
            max_rows=self._settings.dataset_max_rows,
            max_memory=self._settings.dataset_check_memory_bytes,
        )
        if not self._turns.acquire(timeout=self._turn_seconds):
            raise CheckBusy
        try:
            result = self._run(request)
        finally:
            self._turns.release()
        if result.problems:
            raise InvalidRequest(_detail(problem) for problem in result.problems)
        return result

    def _run(self, request: CheckRequest) -> CheckResult:
        seconds = self._settings.dataset_check_seconds
        try:
            done = subprocess.run(
                [sys.executable, "-m", "engines.training.datasets.check"],
                input=json.dumps(asdict(request)).encode(),
                capture_output=True,
                cwd=ROOT,
                env=child_environment(),
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            problem = f"checking it took longer than {seconds:.0f} seconds; split it (CY_LLM_DATASET_CHECK_SECONDS)"
            return CheckResult([Problem(0, "", problem)])
        if done.returncode != 0:
            words = done.stderr.decode(errors="replace")[-2000:]
            log.warning("The check of a data set ended with status %d: %s", done.returncode, words)
            problem = "the check of this file broke off; is it larger than the memory that a check may use?"
            return CheckResult([Problem(0, "", problem)])
        return CheckResult.from_json(done.stdout)


def _detail(problem: Problem) -> Detail:
    field = problem.field if problem.field.startswith("hyperParams") else "datasetPath"
    where = ", ".join(part for part in (f"line {problem.line}" if problem.line else "", problem.field) if part)
    return Detail("dataset", field, f"{where}: {problem.description}" if where else problem.description)
