"""One connection that listens to any number of Redis channels, in a thread of its own."""

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from store.redis import keys as redis_keys
from store.redis.client import CONNECT_TIMEOUT_SECONDS, connection_pool

log = logging.getLogger(__name__)

#: After this much silence Redis is pinged; after as much again the
#: connection is made anew. Seconds.
SILENCE_SECONDS = 5.0
#: Pause before the connection is made anew after Redis went away. Seconds.
_RECONNECT_SECONDS = 0.2


class Subscription:
    """Hands over what is published on the channels that were added.

    It reads the connection itself, not through the client library's ``PubSub``: that one
    costs several times as much for a message, and every token is one.
    """

    def __init__(
        self,
        url: str,
        message: Callable[[bytes, bytes], None],
        confirmed: Callable[[bytes], None],
    ) -> None:
        """Both are called on the thread and must not wait: ``message(channel, data)``, and
        ``confirmed(channel)``, from when on nothing is missed; again whenever the connection was made anew."""
        self._pool = connection_pool(
            url,
            protocol=2,
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            socket_timeout=SILENCE_SECONDS,
            health_check_interval=0,
            retry=Retry(NoBackoff(), 0),
        )
        self._message, self._confirmed = message, confirmed
        self._lock = threading.Lock()
        self._channels: set[bytes] = set()
        # Its methods have no types.
        self._connection: Any = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="subscription", daemon=True)
        self._thread.start()

    def add(self, channel: bytes) -> None:
        """Begin to listen; ``confirmed`` tells when."""
        with self._lock:
            self._channels.add(channel)
            self._send("SUBSCRIBE", [channel])

    def remove(self, channel: bytes) -> None:
        with self._lock:
            self._channels.discard(channel)
            self._send("UNSUBSCRIBE", [channel])

    def close(self) -> None:
        """End the thread and the connection."""
        self._closed.set()
        with self._lock:
            if self._connection is not None:
                self._connection.disconnect()
        self._thread.join(timeout=5)

    def _send(self, command: str, channels: Iterable[bytes]) -> None:
        """Called with the lock. What cannot be sent is made good by the next connection."""
        if self._connection is None:
            return
        try:
            self._connection.send_command(command, *channels, check_health=False)
        except (RedisError, OSError):
            log.debug("%s failed; the connection is made anew", command, exc_info=True)

    def _run(self) -> None:
        while not self._closed.is_set():
            connection: Any = self._pool.make_connection()
            try:
                self._listen(connection)
            except (RedisError, OSError) as error:
                if self._connection is not None and not self._closed.is_set():
                    log.warning("The subscription was lost, making it anew: %s", error)
            finally:
                with self._lock:
                    self._connection = None
                    connection.disconnect()
            self._closed.wait(_RECONNECT_SECONDS)

    def _listen(self, connection: Any) -> None:
        connection.connect()
        with self._lock:
            if self._closed.is_set():
                return
            self._connection = connection
            # A channel that is always there shows that the connection works, followers or not.
            self._send("SUBSCRIBE", [redis_keys.hub_channel(), *self._channels])
        silent = False
        while True:
            try:
                kind, channel, data = self._read(connection)
            except redis.TimeoutError:
                if silent:
                    raise
                silent = True
                with self._lock:
                    self._send("PING", [])
                continue
            silent = False
            if kind == b"message":
                self._message(channel, data)
            elif kind == b"subscribe":
                self._confirmed(channel)

    @staticmethod
    def _read(connection: Any) -> tuple[bytes, bytes, bytes]:
        response = connection.read_response(disconnect_on_error=False)
        # The answer to PING has two parts.
        return tuple(response) if len(response) == 3 else (b"pong", b"", b"")
