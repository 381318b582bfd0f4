"""Looking at processes, on Linux."""

import os
from pathlib import Path


def children(pid: int) -> list[int]:
    """The direct children of a process, whichever of its threads started them."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(text) for text in (task / "children").read_text().split()]
    return found


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to look at it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def family(pid: int) -> list[int]:
    """A process and all that came of it. (Environments tell nothing: who sets its title writes over them.)"""
    try:
        return [pid, *(found for child in children(pid) for found in family(child))]
    except OSError:
        return [pid]


def rss(pid: int) -> int:
    """Resident memory that the process shares with nobody, in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu(pid: int) -> float:
    """User and system time of a process, in seconds."""
    parts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")
