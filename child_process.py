"""Child processes that never outlive their parent."""

import ctypes
import os
import signal
import sys

#: ``<linux/prctl.h>``.
_PR_SET_PDEATHSIG = 1


def die_with_parent(number: int = signal.SIGKILL, parent: int | None = None) -> None:
    """Let the kernel send ``number`` to this process when the *thread* that started it ends. Linux; elsewhere nothing.

    To be called by the child itself, early (as ``preexec_fn``, in a hook behind a fork, first thing in
    ``main``). ``parent`` is the pid that the parent had: when it is gone already, this process ends now.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)
