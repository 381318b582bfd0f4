"""How gunicorn runs the front door. ``gunicorn wsgi:app`` reads this file by itself."""

import gc

from telemetry import process_files

# Before anything that counts is imported.
_metrics = process_files.make_folder()

import logs
from child_process import die_with_parent
from services.bind_address import InsecureBindError, addresses
from settings import Settings
from webapp.gunicorn.internals import QuietLogger, is_stopping
from webapp.gunicorn.worker import PollingThreadWorker
from webapp.http.current import services_of

_settings = Settings.from_env_or_exit()

try:
    bind = addresses(_settings)
except InsecureBindError as error:
    raise SystemExit(f"cy-llm: {error}") from None
# A stream holds a thread while it lasts, and costs little: a thread that waits.
worker_class = PollingThreadWorker
workers = _settings.web_workers
threads = _settings.web_threads
# More sockets than threads, so that a full house still answers health checks in turn.
worker_connections = _settings.web_threads + 256
timeout = 60
graceful_timeout = int(_settings.drain)
keepalive = 5
logconfig_dict = logs.config(_settings.log_level)
# Gunicorn's own lines too are JSON; its access log is off, the front door writes one itself.
logconfig_dict["loggers"]["gunicorn.error"] = {"level": "INFO", "handlers": ["stderr"], "propagate": False}
control_socket_disable = True
logger_class = QuietLogger
proc_name = "cy-llm-web"


def post_fork(server, worker):
    """A worker whose arbiter was killed would go on listening, beside the one that is started in its place."""
    die_with_parent(parent=server.pid)


def post_worker_init(worker):
    """Let streams see that the process is being stopped, so that they end in a state to resume from."""
    # What was made so far stays: the collector need not look through it again and again.
    gc.collect()
    gc.freeze()
    services_of(worker.wsgi).lifecycle.is_stopping = is_stopping(worker)


def child_exit(server, worker):
    """What a process that ended has counted stays counted."""
    process_files.retire(_metrics, worker.pid)


def on_exit(server):
    """The numbers end with the master."""
    process_files.remove_folder(_metrics)
