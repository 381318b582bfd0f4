"""What an engine core asks its machine for."""

import subprocess
import sys
from pathlib import Path

from settings import ROOT

#: ``ARCH_GET_XCOMP_PERM`` of ``<asm/prctl.h>`` by ``arch_prctl``: bit 18 is the data of AMX tiles.
_ALLOWED = """
import ctypes
from engines.vllm.cpu import allow_amx
allow_amx()
found = ctypes.c_uint64()
assert ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(found)) == 0
print("allowed:", bool(found.value & 1 << 18))
"""


def test_amx_may_be_used_where_the_processor_has_it() -> None:
    """Without that vLLM's attention ends a core with SIGILL, on some machines and at some times."""
    has_amx = " amx_tile " in Path("/proc/cpuinfo").read_text()
    done = subprocess.run([sys.executable, "-c", _ALLOWED], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert f"allowed: {has_amx}" in done.stdout, done.stderr[-2000:]
