"""The text of a generation that another worker began.

A token can hold half a character, whose other half comes with the next one. vLLM would
read the delivered tokens as part of the prompt and lose what the first half began. So the
detokenizer of an undisturbed run is made again, and the delivered tokens go through it
once more: what it says from then on is what the first worker would have said.
"""

from collections.abc import Sequence

from vllm.engine.protocol import EngineClient
from vllm.sampling_params import SamplingParams

from engines.types import Chunk
from engines.vllm.internals import TextReplay


class ResumedText:
    """Detokenizes the chunks of a resumed generation."""

    def __init__(
        self, client: EngineClient, prompt_ids: Sequence[int], parameters: SamplingParams, delivered: Sequence[int]
    ) -> None:
        self._replay = TextReplay(client, prompt_ids, parameters, delivered)

    def next(self, chunk: Chunk) -> str:
        """Return the text of the chunk's tokens."""
        finished = chunk.finish_reason is not None
        return self._replay.text(chunk.token_ids, stopped=chunk.finish_reason == "stop", finished=finished)
