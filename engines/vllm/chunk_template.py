"""Chunks of a plain stream, written around their text as vLLM wrote the first of them.

vLLM makes three objects of each chunk, checks them and writes them out, and all that differs between one chunk of a
text and the next is the text. So vLLM itself writes the chunks that stand out: those of the first output, those of the
last, the usage, errors. Those between are written with what it put around the first one's text.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from vllm.outputs import CompletionOutput

from engines.vllm.internals import (
    ChatCompletionRequest,
    CompletionRequest,
    OpenAIServingChat,
    OpenAIServingCompletion,
)

#: What vLLM reads the engine's outputs as: of chat as they are, of completions with the number of their prompt.
T = TypeVar("T")
_json = json.JSONEncoder(ensure_ascii=False).encode


class ChunkTemplate:
    """What stands before the text of a chunk, and behind it."""

    def __init__(self, head: str, tail: str) -> None:
        self._head = head
        self._tail = tail

    @classmethod
    def of(cls, event: str, member: str, text: str) -> "ChunkTemplate | None":
        """The template of an event whose ``member`` is ``text``; None where it is not, or the text is empty."""
        mark = f'"{member}":'
        head, found, tail = event.partition(mark + _json(text))
        if not (text and found) or mark in head or mark in tail:
            return None
        return cls(head + mark, tail)

    def write(self, text: str) -> str:
        """Return the event of another text, as vLLM would write it."""
        return self._head + _json(text) + self._tail


class _Outputs(Generic[T]):
    """The engine's outputs as vLLM gets them: those that were read for it already come first."""

    def __init__(self, source: AsyncIterator[T]) -> None:
        self.source = source
        #: The last that vLLM got.
        self.last: T | None = None
        self._next: T | None = None
        self._failure: Exception | None = None

    def __aiter__(self) -> "_Outputs[T]":
        return self

    async def __anext__(self) -> T:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        output, self._next = self._next, None
        self.last = await anext(self.source) if output is None else output
        return self.last

    def put(self, output: T | Exception) -> None:
        """Let vLLM get this next."""
        if isinstance(output, Exception):
            self._failure = output
        else:
            self._next = output


def chunks_differ_in_text(
    serving: OpenAIServingChat | OpenAIServingCompletion, request: ChatCompletionRequest | CompletionRequest
) -> bool:
    """Whether the chunks between the first and the last of a request's stream differ in nothing but their text.

    Measures (``logprobs``) and parsers are the caller's to ask.
    """
    options = request.stream_options
    counted = serving.enable_force_include_usage or (options is not None and options.continuous_usage_stats)
    return not (counted or request.n not in (None, 1) or request.echo or request.return_token_ids)


async def written_around(
    member: str,
    source: AsyncIterator[T],
    write: Callable[[AsyncIterator[T]], AsyncGenerator[str, None]],
    completion_of: Callable[[T], CompletionOutput],
) -> AsyncGenerator[str, None]:
    """Yield the events that ``write``, a generator of vLLM's, makes of ``source``, the engine's outputs.

    For streams whose chunks differ in nothing but ``member``: of one choice, without measures, token ids or counts.
    vLLM's generator counts the tokens that it sees: it gets those between with the last output.
    """
    outputs = _Outputs(source)
    template: ChunkTemplate | None = None
    async with aclosing(write(outputs)) as events:
        async for event in events:
            yield event
            if template is not None or outputs.last is None:
                continue
            template = ChunkTemplate.of(event, member, completion_of(outputs.last).text)
            if template is None or completion_of(outputs.last).finish_reason is not None:
                continue
            tokens: list[int] = []
            try:
                while (completion := completion_of(output := await anext(source))).finish_reason is None:
                    tokens += completion.token_ids
                    yield template.write(completion.text)
            except Exception as error:
                # Also the end of the source: vLLM says what is to be said.
                outputs.put(error)
            else:
                completion.token_ids = [*tokens, *completion.token_ids]
                outputs.put(output)
