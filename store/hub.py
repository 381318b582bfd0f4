"""One subscription per process, any number of followers.

A thread of its own listens to Redis and hands every published entry to the follower it
belongs to. Pub/sub only wakes: what a follower missed (it came late, was slow, or Redis
was away) it reads from the token log, so nothing is lost and nothing waits on anybody.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType

import redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from store import names, streams
from store.entries import START, Entry, EntryId
from store.redis import connect_async

log = logging.getLogger(__name__)

#: Entries that wait in a follower's queue; when more come, it reads the log instead.
MAX_WAITING = 256
#: How long a new follower waits for its subscription. Seconds.
SUBSCRIBE_TIMEOUT_SECONDS = 1.0
#: Pause before the subscription is made anew after Redis went away. Seconds.
_RECONNECT_SECONDS = 0.2
#: A follower that hears nothing looks into the log this often, whatever pub/sub does. Seconds.
_RECHECK_SECONDS = 5.0


class Mailbox:
    """What the hub hands to one follower. ``put`` never waits."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[EntryId, Entry] | None] = queue.Queue(MAX_WAITING)
        self._overflowed = False

    def put(self, item: tuple[EntryId, Entry] | None) -> None:
        """Add an entry with the id before it; None means "read the log, you may have missed something"."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._overflowed = True

    def get(self, timeout: float) -> tuple[EntryId, Entry] | None:
        """Return the next item; None when the log must be read. Raises ``queue.Empty``."""
        if self._overflowed and self._queue.empty():
            self._overflowed = False
            return None
        return self._queue.get(timeout=timeout)


class Hub:
    """The subscription of one process. Threads call :meth:`follow`."""

    def __init__(self, url: str, client: redis.Redis) -> None:
        self._url = url
        self._client = client
        self._followers: dict[bytes, list[Mailbox]] = {}
        self._loop = asyncio.new_event_loop()
        self._pubsub: PubSub | None = None
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    def follow(self, request_id: str, after: EntryId = START) -> "Follower":
        """Return a follower of the request's log from behind ``after``; use it in ``with``."""
        return Follower(self, self._client, request_id, after)

    def others(self, follower: "Follower") -> bool:
        """Whether anybody but ``follower`` follows its request, here or in another process."""
        if len(self._followers.get(follower.channel, ())) > 1:
            return True
        counts = self._client.pubsub_numsub(follower.channel)
        return any(count > 1 for _, count in counts)

    def close(self) -> None:
        """End the subscription and its thread; followers hear nothing more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()

    def attach(self, channel: bytes, mailbox: Mailbox) -> None:
        """Subscribe; returns once Redis has confirmed. Raises ``redis.TimeoutError``."""
        future = asyncio.run_coroutine_threadsafe(self._attach(channel, mailbox), self._loop)
        try:
            future.result(SUBSCRIBE_TIMEOUT_SECONDS)
        except (RedisError, OSError) as error:
            # A time-out is an OSError too.
            self.detach(channel, mailbox)
            raise redis.TimeoutError("no subscription within the time allowed") from error

    def detach(self, channel: bytes, mailbox: Mailbox) -> None:
        asyncio.run_coroutine_threadsafe(self._detach(channel, mailbox), self._loop)

    # Everything below runs on the hub's own loop.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._confirmed: dict[bytes, asyncio.Event] = {}
        task = self._loop.create_task(self._listen())
        self._loop.run_forever()
        for waiting in asyncio.all_tasks(self._loop):
            waiting.cancel()
        self._loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    async def _attach(self, channel: bytes, mailbox: Mailbox) -> None:
        self._followers.setdefault(channel, []).append(mailbox)
        confirmed = self._confirmed.setdefault(channel, asyncio.Event())
        if not confirmed.is_set() and len(self._followers[channel]) == 1 and self._pubsub is not None:
            await self._pubsub.subscribe(channel)
        await confirmed.wait()

    async def _detach(self, channel: bytes, mailbox: Mailbox) -> None:
        followers = self._followers.get(channel, [])
        if mailbox in followers:
            followers.remove(mailbox)
        if followers or channel not in self._followers:
            return
        del self._followers[channel]
        self._confirmed.pop(channel, None)
        if self._pubsub is not None:
            try:
                await self._pubsub.unsubscribe(channel)
            except (RedisError, OSError):
                log.debug("Unsubscribe failed; the listener makes the connection anew", exc_info=True)

    async def _listen(self) -> None:
        """Keep one subscription alive, whatever happens to Redis."""
        while True:
            client = connect_async(self._url, timeout=None)
            try:
                await self._listen_once(client)
            except (RedisError, OSError) as error:
                if self._pubsub is not None:
                    log.warning("The subscription was lost, making it anew: %s", error)
            finally:
                self._pubsub = None
                for confirmed in self._confirmed.values():
                    confirmed.clear()
                await client.aclose()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _listen_once(self, client: redis.asyncio.Redis) -> None:
        async with client.pubsub() as pubsub:
            # A connection with no subscription would end the listening; this one stays.
            await pubsub.subscribe(names.HUB_CHANNEL)
            # From here on a new follower subscribes itself; those that came before are taken along.
            self._pubsub = pubsub
            if self._followers:
                await pubsub.subscribe(*self._followers)
            while True:
                message = await pubsub.get_message(timeout=None)
                if message is None:
                    continue
                if message["type"] == "message":
                    self._hand_over(message["channel"], message["data"])
                elif message["type"] == "subscribe":
                    self._subscribed(message["channel"])

    def _subscribed(self, channel: bytes) -> None:
        if channel in self._confirmed:
            self._confirmed[channel].set()
        for mailbox in self._followers.get(channel, ()):
            mailbox.put(None)

    def _hand_over(self, channel: bytes, frame: bytes) -> None:
        try:
            item = Entry.parse_frame(frame)
        except ValueError:
            log.warning("Not an entry of a token log", extra={"channel": channel.decode(errors="replace")})
            return
        for mailbox in self._followers.get(channel, ()):
            mailbox.put(item)


class Follower:
    """Reads one log to its end. Belongs to one thread."""

    def __init__(self, hub: Hub, client: redis.Redis, request_id: str, after: EntryId) -> None:
        self._hub = hub
        self._client = client
        self.request_id = request_id
        #: The last entry that was returned.
        self.position = after
        self.channel = names.log_channel(request_id).encode()
        self._mailbox = Mailbox()

    def __enter__(self) -> "Follower":
        self._hub.attach(self.channel, self._mailbox)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub.detach(self.channel, self._mailbox)

    def entries(self, idle: float) -> Iterator[Entry | None]:
        """Yield every entry up to the terminal one; None whenever ``idle`` seconds brought none.

        Never ends without a terminal entry: the caller has the deadline. A Redis that is
        away shows as silence.
        """
        spoke = time.monotonic()
        while True:
            wait = max(0.0, min(spoke + idle - time.monotonic(), _RECHECK_SECONDS))
            for entry in self._next(wait):
                self.position = entry.id
                yield entry
                if entry.terminal:
                    return
                spoke = time.monotonic()
            if time.monotonic() - spoke >= idle:
                yield None
                spoke = time.monotonic()

    def _next(self, wait: float) -> list[Entry]:
        try:
            item = self._mailbox.get(timeout=wait)
        except queue.Empty:
            return self._read_log()
        if item is None:
            return self._read_log()
        previous, entry = item
        if entry.id <= self.position:
            return []
        return [entry] if previous == self.position else self._read_log()

    def _read_log(self) -> list[Entry]:
        try:
            return streams.read(self._client, self.request_id, self.position)
        except (RedisError, OSError):
            log.warning("The token log cannot be read now", extra={"request_id": self.request_id})
            return []
