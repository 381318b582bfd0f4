"""Asks the kernel for AMX in each Python process that has this folder on its path: ``vllm serve`` needs it, and does
not ask (``engines.vllm.cpu.allow_amx``)."""

import ctypes
import platform
import sys

#: ``SYS_arch_prctl``; ``ARCH_REQ_XCOMP_PERM`` and the data of tiles, of ``<asm/prctl.h>``.
_ARCH_PRCTL, _REQUEST, _TILES = 158, 0x1023, 18

if sys.platform == "linux" and platform.machine() == "x86_64":
    # Where there is none it says no, and nothing is changed.
    ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILES)
