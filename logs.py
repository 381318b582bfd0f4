"""JSON log lines, each with the request it belongs to.

``bind(request_id=...)`` puts fields on every line that the current thread or asyncio
task writes inside the ``with`` block, whatever module writes it.
"""

import contextlib
import logging
import logging.config
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

#: Loggers with a level of their own: a library that vLLM imports sets the root's to ERROR.
_OWN = ("webapp", "tasks", "store", "engines", "telemetry", "celery")

_bound: ContextVar[dict[str, str]] = ContextVar("cy_llm_log_fields")


@contextlib.contextmanager
def bind(**fields: str | None) -> Iterator[None]:
    """Add the fields that are not None to every log line written inside the block."""
    before = _bound.get({})
    _bound.set({**before, **{name: value for name, value in fields.items() if value is not None}})
    try:
        yield
    finally:
        # Not ``reset``: a stream's generator may be closed in another context than it began in.
        _bound.set(before)


class RequestFields(logging.Filter):
    """Copies the bound fields onto each record; a record's own ``extra`` wins."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in _bound.get({}).items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def config(level: str | int) -> dict[str, Any]:
    """Return the ``logging.config.dictConfig`` document: JSON lines on standard error."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request": {"()": "logs.RequestFields"}},
        "formatters": {
            "json": {
                "()": "pythonjsonlogger.json.JsonFormatter",
                "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
                "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
                "json_ensure_ascii": False,
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "filters": ["request"]}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {name: {"level": level} for name in _OWN},
    }


def tolerate_unfinished_handlers() -> None:
    """Let ``dictConfig`` meet a handler that another thread is just making.

    It flushes every handler that there is, and a handler is in its list before it has its lock and its stream: vLLM's
    ``dictConfig``, in the thread that loads a model, then ended the loading with an ``AttributeError``. Both are None
    in the class now until an object has its own, which ``Handler.acquire`` and ``StreamHandler.flush`` take for none.
    """
    logging.Handler.lock = None
    logging.StreamHandler.stream = None  # type: ignore[misc]


def configure(level: str | int) -> None:
    """Send this process's log lines, as JSON, to standard error."""
    tolerate_unfinished_handlers()
    logging.config.dictConfig(config(level))
