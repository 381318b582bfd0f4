"""Checks data sets for front doors whose host does not have the base model's tokenizer."""

import logging
import threading

import redis
from redis.exceptions import RedisError

from tasks.broker.dataset_checks import answer_next, run_check

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 2.0


class DatasetCheckThread:
    """A thread of a ``gpu-train`` worker, beside the training that it may be running."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dataset-checks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take no more; what is being checked is not waited for, its asker tries again."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                answer_next(self._redis, run_check)
            except (RedisError, OSError) as error:
                log.warning("Data sets cannot be checked for front doors now: %s", error)
                self._stopping.wait(_PAUSE_SECONDS)
            except Exception:
                # The thread must outlive any fault; whoever asked hears that nobody answered.
                log.exception("The check of a data set failed")
