"""Data sets are checked before a job is queued, off the threads that serve clients, within bounds."""

import logging
import threading
from pathlib import Path

import redis
from redis.exceptions import RedisError

from engines.training.datasets.check_messages import CheckRequest, CheckResult
from engines.training.datasets.rows import Problem
from engines.training.spec import HyperParams
from services.errors import CheckBusy, InvalidRequest
from settings import Settings
from store.token_log.outcomes import Detail
from tasks.broker.dataset_checks import NoAnswer, ask_worker, run_check

log = logging.getLogger(__name__)

#: Checks that one process runs at once; each takes a core.
_AT_ONCE = 2
#: How long a check waits for its turn. Seconds.
_TURN_SECONDS = 10.0


class DatasetChecker:
    """Checks in a child process; a training worker does where this host does not have the model's tokenizer."""

    def __init__(
        self, settings: Settings, client: redis.Redis, at_once: int = _AT_ONCE, turn_seconds: float = _TURN_SECONDS
    ) -> None:
        self._settings = settings
        self._redis = client
        self._turns = threading.BoundedSemaphore(at_once)
        self._turn_seconds = turn_seconds

    def require_usable(
        self,
        path: Path,
        location: str,
        method: str,
        format: str,
        long_rows: str,
        params: HyperParams,
        field: str = "datasetPath",
    ) -> CheckResult:
        """Check a data set for a base model at ``location``. ``field``: where the client named it.

        Raises ``InvalidRequest``, ``CheckBusy``.
        """
        request = CheckRequest(
            path=str(path),
            method=method,
            format=format,
            model=location,
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
            result = self._check(request)
        finally:
            self._turns.release()
        if result.problems:
            raise InvalidRequest(_detail(problem, field) for problem in result.problems)
        return result

    def _check(self, request: CheckRequest) -> CheckResult:
        seconds = self._settings.dataset_check_seconds
        here = run_check(request, seconds)
        if here.problems or here.counted:
            return here
        try:
            there = ask_worker(self._redis, request, seconds)
        except NoAnswer:
            raise CheckBusy from None
        except RedisError:
            # Jobs are accepted without Redis, and sent once it is back.
            there = None
        if there is None:
            # The trainer counts, before its first step.
            log.warning("Lengths were not counted: no tokenizer on this host, and no training worker to ask")
        return there or here


def _detail(problem: Problem, dataset_field: str) -> Detail:
    field = problem.field if problem.field.startswith("hyperParams") else dataset_field
    where = ", ".join(part for part in (f"line {problem.line}" if problem.line else "", problem.field) if part)
    return Detail("dataset", field, f"{where}: {problem.description}" if where else problem.description)
