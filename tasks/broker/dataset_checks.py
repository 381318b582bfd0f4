"""The check of a data set: as a child process of this one, or by a training worker that has the model's tokenizer.

A front door whose host has no tokenizer leaves its request in a list; each ``gpu-train`` worker takes what
it can and answers in a list of the request's own. That a worker listens is a key that it renews.
"""

import json
import logging
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import redis

from engines.training.datasets.check_messages import CheckRequest, CheckResult
from engines.training.datasets.rows import Problem
from settings import ROOT, child_environment
from store.redis import keys

log = logging.getLogger(__name__)

#: How long a worker that was heard counts as listening. Seconds.
_LISTENING_SECONDS = 10
#: How long one command waits for its element; below the client's own bound. Seconds.
_WAIT_SECONDS = 1
#: How long an answer waits for whoever asked. Seconds.
_ANSWER_SECONDS = 60


class NoAnswer(Exception):
    """A training worker was listening, and did not answer in time."""


def run_check(request: CheckRequest, seconds: float) -> CheckResult:
    """Run a check as a child process, which ends by itself when this one does."""
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


def ask_worker(client: redis.Redis, request: CheckRequest, seconds: float) -> CheckResult | None:
    """Let a training worker check, for so many seconds; None where none listens.

    Raises ``NoAnswer``, ``redis.RedisError``.
    """
    if not client.exists(keys.checkers()):
        return None
    check_id = secrets.token_hex(8)
    message = json.dumps({"id": check_id, "seconds": seconds, "request": asdict(replace(request, download=True))})
    client.lpush(keys.checks(), message)
    ends = time.monotonic() + seconds + _LISTENING_SECONDS
    while time.monotonic() < ends:
        answer: Any = client.brpop([keys.check_answer(check_id)], timeout=_WAIT_SECONDS)
        if answer is not None:
            return CheckResult.from_json(answer[1])
    client.lrem(keys.checks(), 1, message)
    raise NoAnswer


def answer_next(client: redis.Redis, check: Callable[[CheckRequest, float], CheckResult]) -> None:
    """Say that a worker listens, wait a moment for a request, and answer it. Raises ``redis.RedisError``."""
    client.set(keys.checkers(), 1, ex=_LISTENING_SECONDS)
    found: Any = client.brpop([keys.checks()], timeout=_WAIT_SECONDS)
    if found is None:
        return
    message = json.loads(found[1])
    # It listens on while it checks: others wait for their turn.
    client.set(keys.checkers(), 1, ex=int(message["seconds"]) + _LISTENING_SECONDS)
    result = check(CheckRequest(**message["request"]), message["seconds"])
    answer = keys.check_answer(message["id"])
    with client.pipeline() as pipeline:
        pipeline.lpush(answer, json.dumps(asdict(result), ensure_ascii=False))
        pipeline.expire(answer, _ANSWER_SECONDS)
        pipeline.execute()
