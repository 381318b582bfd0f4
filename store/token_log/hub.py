"""One subscription per process, any number of followers.

A thread of its own listens to Redis and hands every published entry to the follower it
belongs to. Pub/sub only wakes: what a follower missed (it came late, was slow, or Redis
was away) it reads from the token log, so nothing is lost and nothing waits on anybody.
"""

import logging
import threading

import redis

from store.token_log.entries import START, Entry, EntryId
from store.token_log.follower import Follower
from store.token_log.subscription import Subscription

log = logging.getLogger(__name__)


class Channel:
    """One request's channel in this process."""

    def __init__(self) -> None:
        #: Replaced, never changed: the subscription's thread goes through it without a lock.
        self.followers: tuple[Follower, ...] = ()


class Hub:
    """The subscription of one process. Threads call :meth:`follow`."""

    def __init__(self, url: str, client: redis.Redis) -> None:
        self._client = client
        self._channels: dict[bytes, Channel] = {}
        self._lock = threading.Lock()
        self._subscription = Subscription(url, self._message, self._confirmed)

    def follow(self, request_id: str, after: EntryId = START, may_have_history: bool = True) -> Follower:
        """Return a follower of the request's log from after ``after``; use it in ``with``.

        ``may_have_history`` False is for a request that no worker can know yet.
        """
        return Follower(self, self._client, request_id, after, may_have_history)

    def has_other_followers(self, follower: Follower) -> bool:
        """Whether anybody but ``follower`` follows its request, here or in another process."""
        channel = self._channels.get(follower.channel)
        if channel is not None and len(channel.followers) > 1:
            return True
        counts = self._client.pubsub_numsub(follower.channel)
        return any(count > 1 for _, count in counts)

    def close(self) -> None:
        """End the subscription and its thread; followers hear nothing more."""
        self._subscription.close()

    def register(self, follower: Follower) -> None:
        """Subscribe. It waits for nothing: what is published before Redis confirms is read from the log then."""
        with self._lock:
            channel = self._channels.get(follower.channel)
            if channel is not None:
                channel.followers += (follower,)
                # No confirmation will come that makes it look for what was said before.
                follower.request_read()
            else:
                channel = self._channels[follower.channel] = Channel()
                # Before Redis is asked: the confirmation goes to those who are there.
                channel.followers = (follower,)
                self._subscription.add(follower.channel)

    def unregister(self, follower: Follower) -> None:
        with self._lock:
            channel = self._channels.get(follower.channel)
            if channel is None or follower not in channel.followers:
                return
            channel.followers = tuple(other for other in channel.followers if other is not follower)
            if not channel.followers:
                del self._channels[follower.channel]
                self._subscription.remove(follower.channel)

    # Called by the subscription's thread.

    def _message(self, name: bytes, frame: bytes) -> None:
        channel = self._channels.get(name)
        if channel is None:
            return
        try:
            previous, entry = Entry.parse_frame(frame)
        except ValueError:
            log.warning("Not an entry of a token log", extra={"channel": name.decode(errors="replace")})
            return
        for follower in channel.followers:
            follower.on_entry(previous, entry)

    def _confirmed(self, name: bytes) -> None:
        channel = self._channels.get(name)
        if channel is not None:
            for follower in channel.followers:
                follower.on_subscribed()
