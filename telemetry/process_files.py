"""The numbers of a front door's processes, which come and go, as one.

Each process keeps its numbers in mapped files of a folder (``prometheus_client``'s multi-process mode). The master
makes the folder, so that two installations never share one, and looks after it: what a process that ended has counted
moves into one file, so that no counter goes back and the number of files stays; its gauges go with it.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Where ``prometheus_client`` looks for the folder.
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX = "cy-llm-metrics-"
_LOCK = "lock"
#: What stands for the processes that ended, where a file's name has a process id.
_ENDED = "0"
_ADDED_UP = ("counter", "histogram")


def make_folder() -> Path:
    """Make the folder of this master and let ``prometheus_client``, which nobody has imported yet, use it.

    Folders of masters that were killed are removed. A master that reads its configuration anew keeps its own.
    """
    own = os.environ.get(VARIABLE)
    if own and Path(own).is_dir():
        return Path(own)
    root = Path(tempfile.gettempdir())
    for left in root.glob(f"{_PREFIX}*-*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and left.is_dir() and left.stat().st_uid == os.getuid() and not _lives(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    os.environ[VARIABLE] = str(folder)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove the folder at the master's end."""
    shutil.rmtree(folder, ignore_errors=True)


def retire(folder: Path, pid: int) -> None:
    """Keep what a process that ended has counted, and nothing else of it."""
    # Not before the folder is named.
    from prometheus_client import mmap_dict

    files: Any = mmap_dict.MmapedDict

    with _locked(folder):
        for path in folder.glob(f"*_{pid}.db"):
            kind = path.name.partition("_")[0]
            if kind in _ADDED_UP:
                ended = files(str(folder / f"{kind}_{_ENDED}.db"))
                try:
                    for key, value, when, _ in files.read_all_values_from_file(str(path)):
                        ended.write_value(key, ended.read_value(key)[0] + value, when)
                finally:
                    ended.close()
            path.unlink()


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """While the block runs nothing moves between files."""
    with _locked(folder):
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
