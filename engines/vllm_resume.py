"""The text of a generation that another worker began.

A token can hold half a character, whose other half comes with the next one. vLLM would
read the delivered tokens as part of the prompt and lose what the first half began. So the
detokenizer of an undisturbed run is made again, and the delivered tokens go through it
once more: what it says from then on is what the first worker would have said.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from engines.types import Chunk


class ResumedText:
    """Detokenizes the chunks of a resumed generation."""

    def __init__(
        self, tokenizer: Any, prompt_ids: Sequence[int], parameters: SamplingParams, delivered: Sequence[int]
    ) -> None:
        request: Any = SimpleNamespace(
            request_id="resumed", prompt_token_ids=list(prompt_ids), prompt_embeds=None, sampling_params=parameters
        )
        self._detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
        self._detokenizer.update(list(delivered), stop_terminated=False)
        self._detokenizer.get_next_output_text(finished=False, delta=True)

    def next(self, chunk: Chunk) -> str:
        """Return the text of the chunk's tokens."""
        self._detokenizer.update(list(chunk.token_ids), stop_terminated=chunk.finish_reason == "stop")
        return self._detokenizer.get_next_output_text(finished=chunk.finish_reason is not None, delta=True)
