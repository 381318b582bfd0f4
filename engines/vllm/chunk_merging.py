"""Merges a stream's tokens while many streams run, so that a chunk's cost is paid less often.

Whatever a chunk costs behind the engine (JSON, Redis, sockets, the client's parser) is paid per
chunk, not per token. vLLM already merges the outputs that a consumer has not fetched yet; here a
busy engine's outputs are held back for some milliseconds and then released together. The first
output of a request and its last are never held, and a lone request's never at all.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from vllm.outputs import RequestOutput

from engines.vllm.internals import HookedAsyncLLM, RequestOutputCollector

#: What one more stream adds to the time that outputs are held. Seconds. With some 0.1 ms of work
#: behind the engine for a chunk, holding for five times that keeps a core from being all chunks.
_HOLD_PER_STREAM_SECONDS = 0.0005


class MergingCollector(RequestOutputCollector):
    """A request's outputs on their way to its consumer. Made of a plain one by :meth:`ChunkMerger.attach`."""

    merger: "ChunkMerger"
    output: Any
    _seen = 0.0

    def put(self, output: Any) -> None:
        """Take an output; the consumer wakes now, or with the merger's next flush."""
        previous, self._seen = self._seen, time.monotonic()
        if self.output is None or isinstance(output, Exception):
            self.output = output
        else:
            super().put(output)
        hold = self.merger.hold_seconds
        # An engine that is slower than the flushes has nothing to merge: then holding only delays.
        if isinstance(output, RequestOutput) and not output.finished and self._seen - previous < hold:
            self.merger.hold(self)
        else:
            self.ready.set()

    async def get(self) -> Any:
        while True:
            await self.ready.wait()
            output = super().get_nowait()
            if output is not None:
                return output
            self.ready.clear()

    def get_nowait(self) -> Any:
        return super().get_nowait() if self.ready.is_set() else None


class UnmergedCollector(RequestOutputCollector):
    """A request's outputs, each by itself.

    vLLM's parsers of tool calls read streams token by token: of several tokens at once they make other calls than of
    the same tokens one after the other.
    """

    _waiting: deque[Any]

    @classmethod
    def attach(cls, collector: RequestOutputCollector) -> None:
        """Let a request's outputs stay apart; to be called before the first one."""
        if collector.aggregate and not isinstance(collector, UnmergedCollector):
            collector.__class__ = UnmergedCollector
            collector._waiting = deque()

    def put(self, output: Any) -> None:
        self._waiting.append(output)
        self.ready.set()

    async def get(self) -> Any:
        while (output := self.get_nowait()) is None:
            await self.ready.wait()
        return output

    def get_nowait(self) -> Any:
        if not self._waiting:
            self.ready.clear()
            return None
        output = self._waiting.popleft()
        if isinstance(output, Exception):
            raise output
        return output


class ChunkMerger:
    """Releases all held outputs of one engine at once, a few milliseconds apart. Lives on the engine's loop."""

    def __init__(self, max_hold: float, streams: Callable[[], int]) -> None:
        #: The longest that an output is held, in seconds; 0 switches merging off.
        self._max_hold = max_hold
        #: How many requests the engine has.
        self._streams = streams
        self._held: set[MergingCollector] = set()

    @property
    def hold_seconds(self) -> float:
        """How long an output is held now: nothing for one stream, more with each further one."""
        return min(self._max_hold, (self._streams() - 1) * _HOLD_PER_STREAM_SECONDS)

    def attach(self, collector: RequestOutputCollector) -> None:
        """Let a request's outputs be merged, if its consumer reads them as deltas."""
        unlike = isinstance(collector, MergingCollector | UnmergedCollector)
        if collector.aggregate and self._max_hold > 0 and not unlike:
            collector.__class__ = MergingCollector
            collector.merger = self

    def hold(self, collector: MergingCollector) -> None:
        if not self._held:
            asyncio.get_running_loop().call_later(self.hold_seconds, self._flush)
        self._held.add(collector)

    def _flush(self) -> None:
        held, self._held = self._held, set()
        for collector in held:
            # It may have been released before, and fetched.
            if collector.output is not None:
                collector.ready.set()


class MergingAsyncLLM(HookedAsyncLLM):
    """vLLM's ``AsyncLLM`` whose streams' outputs are merged."""

    def set_merge_limit(self, max_hold: float) -> None:
        """Hold outputs for up to ``max_hold`` seconds while many streams run."""
        self.on_collector = ChunkMerger(max_hold, self.unfinished_requests).attach
