"""The process that runs all batches, as a child of the worker: started, listened to, replaced when it is stuck."""

import contextlib
import os
import select
import subprocess
import sys
import time
from typing import Any

from settings import ROOT
from tasks.worker.background.context import HandlerContext

#: How often the process is looked at. Seconds.
_POLL_SECONDS = 0.2
#: A process that is silent for so long is stuck. Seconds.
_STUCK_SECONDS = 60.0


def run(context: HandlerContext, payload: dict[str, Any]) -> str:
    """Run all batches that are open, in a process of their own: they need what front doors do with a request."""
    process = subprocess.Popen([sys.executable, "-m", "webapp.openai.batches"], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    last_output_at = time.monotonic()
    try:
        with process.stdout:
            # Somebody else runs them, or will: this worker was told to stop.
            while process.poll() is None and not context.lost.is_set() and not context.stopping.is_set():
                ready, _, _ = select.select([process.stdout], [], [], _POLL_SECONDS)
                if ready and os.read(process.stdout.fileno(), 4096):
                    last_output_at = time.monotonic()
                elif time.monotonic() - last_output_at > _STUCK_SECONDS:
                    raise RuntimeError(f"the runner of batches has said nothing for {_STUCK_SECONDS:.0f} seconds")
                elif ready:
                    # It is about to end.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_POLL_SECONDS)
    finally:
        stopped = process.poll() is None
        if stopped:
            process.kill()
        status = process.wait()
    if stopped:
        return "left to another worker"
    if status:
        raise RuntimeError(f"the runner of batches ended with status {status}")
    return "no batch is open"
