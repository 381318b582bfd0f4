"""What the tests of files and uploads look at beside the API."""

from pathlib import Path

from testing.stack import Stack


def on_disk(stack: Stack) -> list[Path]:
    return [path for path in (stack.folder / "files").rglob("*") if path.is_file()]
