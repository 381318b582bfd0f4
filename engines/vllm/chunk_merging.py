"""Merges a stream's tokens while many streams run, so that a chunk's cost is paid less often.

Whatever a chunk costs behind the engine (vLLM's objects, JSON, Redis, sockets, the client's parser) is
paid per chunk, not per token. vLLM already merges the outputs that a consumer has not fetched yet; here
no output is made of a busy engine's tokens for some milliseconds, and then one of all of them. The first
output of a request and its last are never held, and a lone request's never at all.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from engines.vllm.internals import FinishReason, HookedAsyncLLM, RequestOutputCollector, RequestState

#: What one more stream adds to the time that outputs are held. Seconds. With some 0.1 ms of work
#: behind the engine for a chunk, holding for five times that keeps a core from being all chunks.
_HOLD_PER_STREAM_SECONDS = 0.0005


class MergingState(RequestState):
    """A request as vLLM's output processor knows it. Made of a plain one by :meth:`ChunkMerger.attach`."""

    merger: "ChunkMerger"
    #: The tokens that are held; what the detokenizer gives out next is their text.
    held: list[int]
    #: When its last tokens came.
    _seen = 0.0

    def make_request_output(
        self, new_token_ids: list[int], pooling_output: Any, finish_reason: FinishReason | None, *rest: Any, **more: Any
    ) -> Any:
        """As vLLM's own, of all tokens since the last; None where they are held."""
        previous, self._seen = self._seen, time.monotonic()
        # An engine that is slower than the flushes has nothing to merge: then holding only delays.
        if finish_reason is None and self._seen - previous < self.merger.hold_seconds:
            self.held += new_token_ids
            self.merger.hold(self)
            return None
        return self._make(new_token_ids, pooling_output, finish_reason, *rest, **more)

    def flush(self) -> None:
        """Give out what is held, if it has not been meanwhile."""
        if self.held:
            output = self._make([], None, None, None)
            if output is not None:
                self.queue.put(output)

    def _make(self, new_token_ids: list[int], *rest: Any, **more: Any) -> Any:
        tokens, self.held = [*self.held, *new_token_ids], []
        return super().make_request_output(tokens, *rest, **more)


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
        self._held: dict[MergingState, None] = {}

    @property
    def hold_seconds(self) -> float:
        """How long an output is held now: nothing for one stream, more with each further one."""
        return min(self._max_hold, (self._streams() - 1) * _HOLD_PER_STREAM_SECONDS)

    def attach(self, state: RequestState) -> None:
        """Let a request's outputs be merged, if its consumer reads them as deltas."""
        queue = state.queue
        if queue is None or not queue.aggregate or isinstance(queue, UnmergedCollector):
            return
        if self._max_hold > 0 and state.detokenizer is not None:
            state.__class__ = MergingState
            state.merger = self
            state.held = []

    def hold(self, state: MergingState) -> None:
        if not self._held:
            asyncio.get_running_loop().call_later(self.hold_seconds, self._flush)
        self._held[state] = None

    def _flush(self) -> None:
        held, self._held = self._held, {}
        for state in held:
            state.flush()


class MergingAsyncLLM(HookedAsyncLLM):
    """vLLM's ``AsyncLLM`` whose streams' outputs are merged."""

    def set_merge_limit(self, max_hold: float) -> None:
        """Hold outputs for up to ``max_hold`` seconds while many streams run."""
        self.on_state = ChunkMerger(max_hold, self.unfinished_requests).attach
