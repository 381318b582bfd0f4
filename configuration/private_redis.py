"""Where the private Redis of ``bin/serve`` listens, for whoever starts it and whoever looks for it."""

import hashlib
import tempfile
from pathlib import Path
from urllib.parse import quote

#: The longest path of a unix socket that every system takes.
_MAX_SOCKET_PATH = 100


def data_folder(var: Path) -> Path:
    """Return the folder of its data, in the folder of ``CY_LLM_VAR``."""
    return var / "redis"


def socket_path(folder: Path) -> Path:
    """Return its socket: beside the data, or for a path that is too long, in the temporary folder, by a stable name."""
    beside = folder / "redis.sock"
    if len(str(beside)) <= _MAX_SOCKET_PATH:
        return beside
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"cy-llm-{name}" / "redis.sock"


def socket_url(socket: Path) -> str:
    """Return the address that clients are given."""
    return f"unix://{quote(str(socket))}"
