"""The tokens of a call of the OpenAI-compatible surface: what its answer was, and is, made of."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from contextvars import ContextVar
from copy import copy
from typing import Any, TypeVar

from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from engines.types import HttpCall, Portion
from engines.vllm.core_process import forget_delivered, mark_delivered
from engines.vllm.internals import (
    AsyncLLM,
    EngineCoreRequest,
    ReplayedRequest,
    RequestOutputCollector,
    unread_output,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How long a generation may take to end that was stopped. Seconds.
_STOP_SECONDS = 5.0
#: Ends that are not the answer's.
_BROKEN_OFF = ("abort", "error")


class CallTokens:
    """The tokens of one call: those that were delivered before, and those that its answer is being made of."""

    def __init__(self, call: HttpCall, unmerged: bool = False) -> None:
        self.delivered = call.delivered
        self.detached = call.detached
        #: Whether the application must get each output by itself.
        self.unmerged = unmerged
        self._meter = call.meter
        self._unfinished = call.unfinished
        self._noted: list[Portion] = []
        self._generations = 0
        #: Whether outputs may hold several choices.
        self.several = False
        #: What was delivered, as outputs of the engine, until the application has got them.
        self.outputs: list[RequestOutput] = []
        self.continuable = True
        self._replayed: dict[str, tuple[int, ReplayedRequest]] = {}
        #: Where outputs come, until the delivered ones are out.
        self._queue: RequestOutputCollector | None = None
        #: Where the one output of an answer comes that is made as a whole.
        self._whole: RequestOutputCollector | None = None
        self._keeps_unfinished = False
        #: Generations that the application reads.
        self._running = 0
        self._reading: list[AsyncGenerator[Any, None]] = []
        self._idle = asyncio.Event()

    def begin(self, parameters: SamplingParams) -> None:
        """A generation is begun for the call."""
        # Ours is set behind this.
        forget_delivered(parameters)
        self._generations += 1
        self.several = parameters.n > 1
        whole = parameters.output_kind != RequestOutputKind.DELTA
        # Several prompts share one answer.
        if self._generations > 1 or (self.several and whole) or parameters.prompt_logprobs is not None:
            self.continuable = False
        # The measures of its tokens would be lost.
        self._keeps_unfinished = whole and parameters.logprobs is None

    def register(
        self, client: AsyncLLM, request: EngineCoreRequest, choice: int, queue: RequestOutputCollector
    ) -> None:
        """The engine has one more request for the call."""
        if self._keeps_unfinished:
            self._whole = queue
        if not self.delivered:
            return
        self._replayed[request.request_id] = (choice, ReplayedRequest(client, request.request_id))
        self._queue = queue

    def after_delivered(self, request: EngineCoreRequest) -> EngineCoreRequest | None:
        """Return a request as the engine gets it, behind what was delivered; None where that was all of it."""
        if self._queue is not None:
            self._replay(self._queue)
            self._queue = None
        choice, replayed = self._replayed[request.request_id]
        return None if replayed.ended else _after(request, [each for each in self.delivered if each.choice == choice])

    def _replay(self, queue: RequestOutputCollector) -> None:
        by_choice = dict(self._replayed.values())
        self.outputs = [by_choice[each.choice].output(*each[:3]) for each in self.delivered]
        if self.outputs[-1].finished:
            # Nothing will come of the engine, which the others could be given out with.
            queue.put(self.outputs.pop())
        if self._whole is not None:
            # The last output has all of it.
            self.outputs = []

    def count_prompt(self, output: RequestOutput | PoolingRequestOutput[Any]) -> None:
        """The application is given the first output of a prompt."""
        self._meter.prompt_tokens += len(output.prompt_token_ids or ())
        self._meter.cached_tokens += output.num_cached_tokens or 0

    def note(self, output: RequestOutput) -> None:
        """The application is given an output, of one choice where the call can be gone on with."""
        # Once for every output of every stream.
        if output.finished and output.metrics is not None:
            self._meter.first_token = output.metrics.first_token_latency
            self._meter.generation = output.metrics.last_token_ts - output.metrics.first_token_ts
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
        self._noted.append(Portion(tokens, reason, completion.stop_reason, completion.index))

    def uncount(self, tokens: int) -> None:
        """Tokens that the application does not tell are not the answer's."""
        self._meter.completion_tokens -= tokens

    def read(self, outputs: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Return a generation that the application will read; it is closed when the call is over."""
        self._reading.append(outputs)
        return outputs

    def start(self) -> None:
        """The application begins to read a generation."""
        self._running += 1

    def end(self) -> None:
        """A generation has come to its end, or was stopped."""
        self._running -= 1
        if not self._running:
            self._idle.set()
        self._keep_unfinished()

    async def stopped(self) -> None:
        """Close what the application does not read any more, and wait for what it still reads in a task of its own."""
        for outputs in self._reading:
            with contextlib.suppress(RuntimeError):
                # Raised where it is being read.
                await outputs.aclose()
        if not self._running:
            return
        self._idle.clear()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._idle.wait()
        except TimeoutError:
            log.error("A generation that was stopped does not end within %.0f s", _STOP_SECONDS)

    def _keep_unfinished(self) -> None:
        """Keep what the engine had made of a whole answer."""
        output = None if self._whole is None else unread_output(self._whole)
        if output is None or not self.continuable:
            return
        [completion] = output.outputs
        if not completion.token_ids:
            return
        self.count_prompt(output)
        self._meter.completion_tokens += len(completion.token_ids)
        reason = None if completion.finish_reason in _BROKEN_OFF else completion.finish_reason
        self._unfinished[:] = [Portion(tuple(completion.token_ids), reason, completion.stop_reason)]

    def take(self) -> tuple[Portion, ...]:
        """Return what was given to the application since the last call."""
        noted, self._noted = tuple(self._noted), []
        return noted


def _after(request: EngineCoreRequest, delivered: Sequence[Portion]) -> EngineCoreRequest:
    """Return the request as the engine gets it: what was delivered is the end of its prompt, and marked."""
    tokens = [token for portion in delivered for token in portion.tokens]
    later = copy(request)
    later.prompt_token_ids = [*(request.prompt_token_ids or ()), *tokens]
    assert isinstance(request.params, SamplingParams)
    later.sampling_params = mark_delivered(request.params, len(tokens))
    return later


#: The call that the current task works for.
CURRENT_CALL: ContextVar[CallTokens | None] = ContextVar("cy_llm_call", default=None)
