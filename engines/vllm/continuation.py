"""A call of the OpenAI-compatible surface that another worker began, gone on with exactly where it was left.

What vLLM's application makes of an engine's outputs (a chunk, the delta of a tool call, a thought) hangs on everything
that came before. So the application is asked once more, from the start, and gets the delivered tokens once more, in the
same portions, before the engine's new ones; the relay leaves out what the client has. The engine itself begins after
the delivered tokens: they are part of its prompt, its grammar is moved past them, and they count as spent.

While an answer is made, each portion is noted for the log with the part of the answer that came of it.
"""

from collections.abc import AsyncGenerator
from contextvars import ContextVar
from copy import copy
from typing import Any

from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import SamplingParams

from engines.types import Meter, Portion
from engines.vllm.chunk_merging import MergingAsyncLLM, UnmergedCollector
from engines.vllm.core_process import DELIVERED_ARGUMENT
from engines.vllm.internals import EngineCoreRequest, ReplayedRequest, RequestOutputCollector

#: Ends that are not the answer's.
_BROKEN_OFF = ("abort", "error")


class CallTokens:
    """The tokens of one call: those that were delivered before, and those that its answer is being made of."""

    def __init__(self, delivered: tuple[Portion, ...], meter: Meter, unmerged: bool = False) -> None:
        self.delivered = delivered
        #: Whether the application must get each output by itself.
        self.unmerged = unmerged
        self._meter = meter
        self._noted: list[Portion] = []
        self._generations = 0
        #: What was delivered, as outputs of the engine, until the application has got them.
        self.outputs: list[RequestOutput] = []
        self.continuable = True

    def begin(self, parameters: SamplingParams) -> None:
        """A generation is begun for the call."""
        self._generations += 1
        # Several choices, or prompts, share one answer; the other values count what the engine itself has generated.
        counts_own = parameters.presence_penalty or parameters.frequency_penalty
        if self._generations > 1 or parameters.n != 1 or counts_own or parameters.prompt_logprobs is not None:
            self.continuable = False

    def count_prompt(self, output: RequestOutput | PoolingRequestOutput[Any]) -> None:
        """The application is given the first output of a prompt."""
        self._meter.prompt_tokens += len(output.prompt_token_ids or ())

    def note(self, output: RequestOutput) -> None:
        """The application is given an output."""
        # Once for every output of every stream.
        if not self.continuable:
            for each in output.outputs:
                self._meter.completion_tokens += len(each.token_ids)
            return
        [completion] = output.outputs
        tokens, reason = tuple(completion.token_ids), completion.finish_reason
        self._meter.completion_tokens += len(tokens)
        if reason in _BROKEN_OFF:
            self.continuable = False
            return
        self._noted.append(Portion(tokens, reason, completion.stop_reason))

    def take(self) -> tuple[Portion, ...]:
        """Return what was given to the application since the last call."""
        noted, self._noted = tuple(self._noted), []
        return noted


#: The call that the current task works for.
CURRENT_CALL: ContextVar[CallTokens | None] = ContextVar("cy_llm_call", default=None)


class ContinuingAsyncLLM(MergingAsyncLLM):
    """vLLM's ``AsyncLLM`` that goes on with generations which another one began."""

    def generate(self, prompt: Any, sampling_params: SamplingParams, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's own; within a call, its outputs are noted, and those delivered before come first."""
        outputs = super().generate(prompt, sampling_params, *args, **kwargs)
        call = CURRENT_CALL.get()
        if call is None:
            return outputs
        call.begin(sampling_params)
        return noted(call, outputs)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's own; within a call, its prompts are counted."""
        outputs = super().encode(*args, **kwargs)
        call = CURRENT_CALL.get()
        return outputs if call is None else _counted(call, outputs)

    async def _add_request(
        self, request: EngineCoreRequest, prompt: str | None, parent_req: Any, index: int, queue: RequestOutputCollector
    ) -> None:
        call = CURRENT_CALL.get()
        if call is not None and call.unmerged:
            UnmergedCollector.attach(queue)
        if call is None or not call.delivered:
            await super()._add_request(request, prompt, parent_req, index, queue)
            return
        self.on_collector(queue)
        replayed = ReplayedRequest(self, request, prompt, queue)
        *earlier, last = (replayed.output(each.tokens, each.finish_reason, each.stop_reason) for each in call.delivered)
        if last.finished:
            call.outputs = earlier
            queue.put(last)
            return
        call.outputs = [*earlier, last]
        await self.engine_core.add_request_async(_after(request, call.delivered))


async def noted(call: CallTokens, outputs: AsyncGenerator[RequestOutput, None]) -> AsyncGenerator[RequestOutput, None]:
    """Yield an engine's outputs, those that were delivered before first, and note each for the call."""
    begun = False
    try:
        async for output in outputs:
            if not begun:
                call.count_prompt(output)
                begun = True
            replayed, call.outputs = call.outputs, []
            for earlier in replayed:
                call.note(earlier)
                yield earlier
            call.note(output)
            yield output
    finally:
        await outputs.aclose()


async def _counted(
    call: CallTokens, outputs: AsyncGenerator[PoolingRequestOutput[Any], None]
) -> AsyncGenerator[PoolingRequestOutput[Any], None]:
    try:
        async for output in outputs:
            if output.finished:
                call.count_prompt(output)
            yield output
    finally:
        await outputs.aclose()


def _after(request: EngineCoreRequest, delivered: tuple[Portion, ...]) -> EngineCoreRequest:
    """Return the request as the engine gets it: what was delivered is part of the prompt, and spent."""
    tokens = [token for portion in delivered for token in portion.tokens]
    later = copy(request)
    later.prompt_token_ids = [*(request.prompt_token_ids or ()), *tokens]
    parameters = request.params.clone()
    assert isinstance(parameters, SamplingParams)
    if parameters.max_tokens is not None:
        parameters.max_tokens -= len(tokens)
    parameters.min_tokens = max(0, parameters.min_tokens - len(tokens))
    parameters.extra_args = {**(parameters.extra_args or {}), DELIVERED_ARGUMENT: len(tokens)}
    later.sampling_params = parameters
    return later
