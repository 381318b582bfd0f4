"""Merges a stream's tokens while many streams run, so that a chunk's cost is paid less often.

Whatever a chunk costs behind the engine (JSON, Redis, sockets, the client's parser) is paid per
chunk, not per token. vLLM already merges the outputs that a consumer has not fetched yet; here a
busy engine's outputs are held back for some milliseconds and then let go together. The first
output of a request and its last are never held, and a lone request's never at all.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from vllm.outputs import RequestOutput
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector

#: What one more stream adds to the time that outputs are held. Seconds. With some 0.1 ms of work
#: behind the engine for a chunk, holding for five times that keeps a core from being all chunks.
_HOLD_PER_STREAM_SECONDS = 0.0005


class PacedCollector(RequestOutputCollector):
    """A request's outputs on their way to its consumer. Made of a plain one by :meth:`Pacer.pace`."""

    pacer: "Pacer"
    output: Any
    _seen = 0.0

    def put(self, output: Any) -> None:
        """Take an output; the consumer wakes now, or with the pacer's next beat."""
        previous, self._seen = self._seen, time.monotonic()
        if self.output is None or isinstance(output, Exception):
            self.output = output
        else:
            super().put(output)
        hold = self.pacer.hold_seconds
        # An engine that is slower than the beat has nothing to merge: then holding only delays.
        if isinstance(output, RequestOutput) and not output.finished and self._seen - previous < hold:
            self.pacer.hold(self)
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


class Pacer:
    """The beat of one engine: lets go of all held outputs at once. Lives on the engine's loop."""

    def __init__(self, longest: float, streams: Callable[[], int]) -> None:
        #: The longest that an output is held, in seconds; 0 switches merging off.
        self._longest = longest
        #: How many requests the engine has.
        self._streams = streams
        self._held: set[PacedCollector] = set()

    @property
    def hold_seconds(self) -> float:
        """How long an output is held now: nothing for one stream, more with each further one."""
        return min(self._longest, (self._streams() - 1) * _HOLD_PER_STREAM_SECONDS)

    def pace(self, collector: RequestOutputCollector) -> None:
        """Let a request's outputs be merged, if its consumer reads them as deltas."""
        if collector.aggregate and self._longest > 0:
            collector.__class__ = PacedCollector
            collector.pacer = self

    def hold(self, collector: PacedCollector) -> None:
        if not self._held:
            asyncio.get_running_loop().call_later(self.hold_seconds, self._beat)
        self._held.add(collector)

    def _beat(self) -> None:
        held, self._held = self._held, set()
        for collector in held:
            # It may have been let go before the beat, and fetched.
            if collector.output is not None:
                collector.ready.set()


class PacedLLM(AsyncLLM):
    """vLLM's ``AsyncLLM`` whose streams are paced."""

    _pacer = Pacer(0.0, lambda: 0)

    def merge(self, longest: float) -> None:
        """Hold outputs for up to ``longest`` seconds while many streams run."""
        self._pacer = Pacer(longest, self.output_processor.get_num_unfinished_requests)

    async def _add_request(
        self, request: EngineCoreRequest, prompt: str | None, parent_req: Any, index: int, queue: RequestOutputCollector
    ) -> None:
        if not isinstance(queue, PacedCollector):
            self._pacer.pace(queue)
        await super()._add_request(request, prompt, parent_req, index, queue)
