"""Chat as vLLM's application serves it, with what it leaves out of OpenAI's contract put right."""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any

from engines.types import HttpCall, HttpPart
from engines.vllm.chunk_template import chunks_differ_in_text, written_around
from engines.vllm.cut_answers import mark_cut, read_cut_answers
from engines.vllm.internals import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ErrorResponse,
    OpenAIServingChat,
    RequestOutput,
)

CHAT_PATH = "/v1/chat/completions"
#: A thought, as JSON; in texts and arguments its quotes are escaped.
_THOUGHT = re.compile(rb'"reasoning":("(?:[^"\\]|\\.)*")')
_MARK = b'"reasoning":"'
_HIDING = b'"include_reasoning":false'


class Chat(OpenAIServingChat):
    """vLLM's own, but for what plain chunks cost, and the reasons that whole answers end for: as their streams'."""

    def chat_completion_stream_generator(
        self, request: ChatCompletionRequest, result_generator: AsyncIterator[RequestOutput], *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """As vLLM's own."""

        def write(outputs: AsyncIterator[RequestOutput]) -> AsyncGenerator[str, None]:
            return super(Chat, self).chat_completion_stream_generator(request, outputs, *args, **kwargs)

        if self.parser_cls is None and not request.logprobs and chunks_differ_in_text(self, request):
            return written_around("content", result_generator, write, lambda output: output.outputs[0])
        return write(result_generator)

    async def chat_completion_full_generator(
        self, request: ChatCompletionRequest, result_generator: AsyncIterator[RequestOutput], *args: Any, **kwargs: Any
    ) -> ErrorResponse | ChatCompletionResponse:
        """As vLLM's own; what was cut was cut, tool calls or not, and no call is none."""
        ends: dict[int, str | None] = {}

        async def outputs() -> AsyncIterator[RequestOutput]:
            async for output in result_generator:
                for each in output.outputs:
                    ends[each.index] = each.finish_reason
                    mark_cut(each)
                yield output

        response = await super().chat_completion_full_generator(request, outputs(), *args, **kwargs)
        if isinstance(response, ChatCompletionResponse):
            for choice in response.choices:
                if ends.get(choice.index) == "length":
                    choice.finish_reason = "length"
                elif choice.finish_reason == "tool_calls" and not choice.message.tool_calls:
                    choice.finish_reason = "stop"
        return response


def use_chat(app: Any) -> None:
    """Let an application of vLLM serve chat so."""
    serving = getattr(app.state, "openai_serving_chat", None)
    if serving is not None:
        serving.__class__ = Chat
        serving.parser_cls = read_cut_answers(serving.parser_cls)


class Thoughts:
    """What becomes of the thoughts in the answer to one call: they get both names that clients read, or are hidden."""

    def __init__(self, call: HttpCall) -> None:
        #: The call as vLLM gets it. Told to leave thoughts out, it would take the form that is asked for for one.
        self.call = call
        self._written = rb'"reasoning":\1,"reasoning_content":\1'
        if _HIDING in call.body:
            body = json.loads(call.body)
            if body.get("include_reasoning") is False:
                self.call = replace(call, body=json.dumps({**body, "include_reasoning": True}).encode())
                self._written = b'"reasoning":null'

    def rename(self, part: HttpPart) -> HttpPart:
        """Return a part of the answer with its thoughts so."""
        if _MARK not in part.data:
            return part
        return HttpPart(_THOUGHT.sub(self._written, part.data), part.portions)
