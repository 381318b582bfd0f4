"""A call of the OpenAI-compatible surface that another worker began, gone on with exactly where it was left.

What vLLM's application makes of an engine's outputs (a chunk, the delta of a tool call, a thought) hangs on everything
that came before. So the application is asked once more, from the start, and gets the delivered tokens once more, in the
same portions, before the engine's new ones; the relay leaves out what the client has. The engine itself begins after
the delivered tokens, as behind a preemption (``engines.vllm.core_process``): they are output, and count as such.

While an answer is made, each portion is noted for the log with the part of the answer that came of it.
"""

from collections.abc import AsyncGenerator
from copy import copy
from typing import Any

from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import SamplingParams

from engines.vllm.call_tokens import CURRENT_CALL, CallTokens
from engines.vllm.chunk_merging import MergingAsyncLLM, UnmergedCollector
from engines.vllm.internals import (
    EngineCoreRequest,
    RequestOutputCollector,
)


class ContinuingAsyncLLM(MergingAsyncLLM):
    """vLLM's ``AsyncLLM`` that goes on with generations which another one began."""

    def generate(self, prompt: Any, sampling_params: SamplingParams, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's own; within a call, its outputs are noted, and those delivered before come first."""
        outputs = super().generate(prompt, sampling_params, *args, **kwargs)
        call = CURRENT_CALL.get()
        if call is None:
            return outputs
        call.begin(sampling_params)
        if not self.resumes_exactly:
            # It is made once more from the start, and goes on only where that says the same.
            call.continuable, call.delivered = False, ()
        return call.read(noted(call, outputs))

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's own; within a call, its prompts are counted."""
        outputs = super().encode(*args, **kwargs)
        call = CURRENT_CALL.get()
        return outputs if call is None else call.read(_counted(call, outputs))

    def on_registered(self, request: EngineCoreRequest, choice: int, queue: RequestOutputCollector) -> None:
        """As the base's; within a call, what was delivered is got ready."""
        call = CURRENT_CALL.get()
        if call is not None and call.unmerged:
            UnmergedCollector.attach(queue)
        super().on_registered(request, choice, queue)
        if call is not None:
            call.register(self, request, choice, queue)

    def before_sent(self, request: EngineCoreRequest) -> EngineCoreRequest | None:
        """As the base's; within a call, what was delivered is behind it."""
        call = CURRENT_CALL.get()
        return request if call is None or not call.delivered else call.after_delivered(request)


async def noted(call: CallTokens, outputs: AsyncGenerator[RequestOutput, None]) -> AsyncGenerator[RequestOutput, None]:
    """Yield an engine's outputs, those that were delivered before first, and note each for the call."""
    begun = False
    call.start()
    try:
        async for output in outputs:
            if not begun:
                call.count_prompt(output)
                begun = True
            replayed, call.outputs = call.outputs, []
            for earlier in replayed:
                call.note(earlier)
                yield earlier
            if call.several and call.continuable and len(output.outputs) > 1:
                # Each with the part of the answer that is made of it.
                for part in _by_choice(output):
                    call.note(part)
                    yield part
                continue
            call.note(output)
            yield output
    finally:
        await outputs.aclose()
        call.end()


def _by_choice(output: RequestOutput) -> list[RequestOutput]:
    parts = [copy(output) for _ in output.outputs]
    for part, completion in zip(parts, output.outputs, strict=True):
        part.outputs = [completion]
        part.finished = False
    parts[-1].finished = output.finished
    return parts


async def _counted(
    call: CallTokens, outputs: AsyncGenerator[PoolingRequestOutput[Any], None]
) -> AsyncGenerator[PoolingRequestOutput[Any], None]:
    call.start()
    try:
        async for output in outputs:
            if output.finished:
                call.count_prompt(output)
            yield output
    finally:
        await outputs.aclose()
        call.end()
