"""The text of a generation that another worker began.

A token can hold half a character, whose other half comes with the next one. vLLM would
read the delivered tokens as part of the prompt and lose what the first half began. So the
detokenizer of an undisturbed run is made again, and the delivered tokens go through it
once more: what it says from then on is what the first worker would have said.
"""

from collections.abc import Sequence
from dataclasses import replace

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

    @property
    def stopped(self) -> bool:
        """Whether the whole text has come to a stop string, which may have begun before the seam."""
        return self._replay.stopped

    def next(self, chunk: Chunk, stop_reason: int | str | None) -> Chunk:
        """Return the chunk with its tokens' text; the last one where a stop string was found."""
        finished = chunk.finish_reason is not None
        by_token = chunk.finish_reason == "stop" and not isinstance(stop_reason, str)
        text = self._replay.text(chunk.token_ids, by_token, finished)
        return replace(chunk, text=text, finish_reason="stop" if self.stopped else chunk.finish_reason)
