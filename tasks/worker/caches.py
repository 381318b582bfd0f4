"""Where the libraries of a worker keep what they compile and fetch: folders that this user can write.

A container may run under a number without a name, and with a home that does not exist (OpenShift gives every pod
such a user). PyTorch then fails on the user's name, and vLLM and the model hub's client on ``~/.cache``.
"""

import os
import pwd
from collections.abc import MutableMapping
from pathlib import Path


def prepare_caches(environ: MutableMapping[str, str], var: Path) -> None:
    """Set the folders' variables in ``environ``, before PyTorch is imported; what the environment sets stays."""
    cache = var / "cache"
    # Kept over restarts: what is compiled at a worker's warm-up is compiled once.
    environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "torchinductor"))
    environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    if not _has_home(environ):
        environ["HOME"] = str(cache)
        environ.setdefault("XDG_CACHE_HOME", str(cache))
        environ.setdefault("VLLM_CACHE_ROOT", str(cache / "vllm"))
        environ.setdefault("VLLM_CONFIG_ROOT", str(cache / "vllm-config"))
        environ.setdefault("HF_HOME", str(cache / "huggingface"))
        cache.mkdir(parents=True, exist_ok=True)
    if not _has_name(environ):
        environ["USER"] = environ["LOGNAME"] = "cy-llm"


def _has_home(environ: MutableMapping[str, str]) -> bool:
    try:
        home = Path(environ.get("HOME") or "~").expanduser()
    except RuntimeError:
        # A user without a name has no home to look up.
        return False
    cache = home / ".cache"
    return os.access(cache if cache.is_dir() else home, os.W_OK | os.X_OK)


def _has_name(environ: MutableMapping[str, str]) -> bool:
    if environ.get("USER") or environ.get("LOGNAME"):
        return True
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True
