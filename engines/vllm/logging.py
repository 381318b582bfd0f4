"""vLLM's log lines as JSON, and the words an engine process dies with.

vLLM's engine core is a process of its own; when it fails to start, its parent only
learns "see root cause above". So its error lines also go to a file that the parent reads.
"""

import json
import logging
import os
import tempfile
from pathlib import Path

import logs

#: An exception's text comes last in a traceback; this much of the end holds it whole.
_TAIL_CHARACTERS = 4000


class EngineLog:
    """A logging configuration for vLLM, and the file that its errors land in."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cy-llm-engine-")
        self._errors = Path(self._folder.name) / "errors.log"
        self.config_file = Path(self._folder.name) / "logging.json"
        self.config_file.write_text(json.dumps(_config(self._errors)))

    def clear(self) -> None:
        """Forget the errors of an earlier try."""
        if self._errors.exists():
            os.truncate(self._errors, 0)

    def recent_errors(self) -> str:
        """Return the end of what was logged as an error, exceptions included, or ''."""
        if not self._errors.exists():
            return ""
        return self._errors.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARACTERS:]

    def close(self) -> None:
        """Remove the files; the engine must have stopped."""
        self._folder.cleanup()


def _config(errors: Path) -> dict:
    document = logs.config(logging.getLevelName(logging.getLogger().getEffectiveLevel()))
    # The engine core is its own process: it serves many requests at once, so its lines
    # belong to none, and the filter's module is not on its import path.
    document.pop("filters")
    document["handlers"]["stderr"].pop("filters")
    document["handlers"]["errors"] = {
        "class": "logging.FileHandler",
        "filename": str(errors),
        "delay": True,
        "level": "ERROR",
    }
    handlers = document.pop("root")["handlers"]
    document["loggers"] = {"vllm": {"level": "INFO", "handlers": [*handlers, "errors"], "propagate": False}}
    return document
