"""Outputs that were given out before, made again by vLLM's own parts."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.logprobs import append_logprobs_for_next_position
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.engine.output_processor import RequestOutputCollector

_FINISH_REASONS = {str(reason): reason for reason in FinishReason}


class TextReplay:
    """The detokenizer of an undisturbed run, made again; vLLM has none that starts in the middle of a text."""

    def __init__(
        self, client: EngineClient, prompt_ids: Sequence[int], parameters: SamplingParams, delivered: Sequence[int]
    ) -> None:
        request: Any = SimpleNamespace(
            request_id="resumed", prompt_token_ids=list(prompt_ids), prompt_embeds=None, sampling_params=parameters
        )
        self._detokenizer = IncrementalDetokenizer.from_new_request(client.renderer.tokenizer, request)
        #: Whether a stop string was found.
        self.stopped = False
        self.text(delivered, by_token=False, finished=False)

    def text(self, token_ids: Sequence[int], by_token: bool, finished: bool) -> str:
        """Return the new text of the tokens. ``by_token``: the last one ends the answer, and is no part of it."""
        found = self._detokenizer.update(list(token_ids), stop_terminated=by_token)
        self.stopped = self.stopped or found is not None
        return self._detokenizer.get_next_output_text(finished=finished or self.stopped, delta=True)


class ReplayedRequest:
    """A registered request whose first outputs are made of tokens that are known already.

    What the engine says later goes on from there: halves of characters, stop strings, offsets.
    """

    def __init__(self, client: AsyncLLM, request_id: str) -> None:
        """``request_id`` is the engine's own, of one choice."""
        self._processor = client.output_processor
        self._state = self._processor.request_states[request_id]

    @property
    def ended(self) -> bool:
        """Whether its last output was made."""
        return self._state.request_id not in self._processor.request_states

    def output(self, tokens: Sequence[int], finish_reason: str | None, stop_reason: int | str | None) -> RequestOutput:
        """Return the output that these tokens were given out with; with a reason it is the choice's last one."""
        state = self._state
        reason = None if finish_reason is None else _FINISH_REASONS[finish_reason]
        # A stop string was found in the text; all other ends are the engine's.
        stopped = reason == FinishReason.STOP and not isinstance(stop_reason, str)
        found = state.detokenizer.update(list(tokens), stopped)
        if isinstance(stop_reason, str):
            # Which one it was is not kept.
            stop_reason = found
        logprobs = state.logprobs_processor.logprobs
        if logprobs is not None:
            for token in tokens:
                # The client has the true ones: what is made of these is left out.
                append_logprobs_for_next_position(logprobs, [token], [0.0], [""], 1, 0)
        completion = state._new_completion_output(list(tokens), reason, stop_reason)
        outputs, finished = [completion], reason is not None
        if state.parent_req is not None:
            outputs, finished = state.parent_req.get_outputs(state.request_id, completion)
        output: RequestOutput = state._new_request_output(state.external_req_id, outputs, finished)
        if reason is not None:
            self._processor._finish_request(state)
        return output


def unread_output(queue: RequestOutputCollector) -> RequestOutput | None:
    """Return the output that nobody has fetched: of a request that was aborted, all that it had come to."""
    return queue.output if isinstance(queue.output, RequestOutput) else None
