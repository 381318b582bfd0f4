"""Which checkpoints are whole. One that was cut off in the middle is never resumed from."""

import json
import os
import re
import shutil
from pathlib import Path

#: Written last into a checkpoint folder: the size of every file in it.
MARK = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)\Z")


def mark_complete(folder: Path) -> None:
    """Vouch for a checkpoint: all of it is on disk before the mark is."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MARK:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[str(path.relative_to(folder))] = path.stat().st_size
    draft = folder / f"{MARK}.tmp"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(sizes, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(folder / MARK)
    _sync_folder(folder)


def is_complete(folder: Path) -> bool:
    """Whether the mark is there and every file has the size that it vouches for."""
    try:
        sizes = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def step_of(folder: Path) -> int:
    match = _NAME.match(folder.name)
    return int(match.group(1)) if match else -1


def latest(work_dir: Path) -> Path | None:
    """Return the newest whole checkpoint, or None."""
    whole = [path for path in work_dir.glob("checkpoint-*") if step_of(path) >= 0 and is_complete(path)]
    return max(whole, key=step_of, default=None)


def remove_broken(work_dir: Path) -> list[str]:
    """Remove what a killed trainer left half-written; return the names."""
    broken = [path for path in work_dir.glob("checkpoint-*") if step_of(path) >= 0 and not is_complete(path)]
    for path in broken:
        shutil.rmtree(path)
    return [path.name for path in broken]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
