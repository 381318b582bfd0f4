"""Anthropic's API as vLLM's application serves it, with what it leaves out of the contract put right."""

import json
from collections.abc import AsyncGenerator
from typing import Any

from engines.vllm.chat import Chat
from engines.vllm.cut_answers import read_cut_answers
from engines.vllm.internals import (
    AnthropicCountTokensResponse,
    AnthropicMessagesResponse,
    AnthropicServingMessages,
    ChatCompletionRequest,
    ChatCompletionResponse,
)

#: What templates and parsers call it.
_NO_THOUGHTS = {"enable_thinking": False, "thinking": False}
_ERROR = 'data: {"error"'
_BLOCK = "event: content_block_start\n"


class Messages(Chat, AnthropicServingMessages):
    """vLLM's own, but for a begun answer, which is gone on with, and errors, which are told as what they are."""

    @classmethod
    def to_chat_completion_request(cls, anthropic_request: Any, **options: Any) -> ChatCompletionRequest:
        """As vLLM's own; where an assistant's text is last, the answer goes on with it."""
        request = super().to_chat_completion_request(anthropic_request, **options)
        if not request.tools:
            # Its stream would take what looks like a call for one.
            request.tool_choice = "none"
        last: Any = request.messages[-1] if request.messages else {}
        if last.get("role") == "assistant" and last.get("content") and not last.get("tool_calls"):
            request.add_generation_prompt = False
            request.continue_final_message = True
            # It goes on with its text: there is no more to think about.
            request.chat_template_kwargs = {**(request.chat_template_kwargs or {}), **_NO_THOUGHTS}
        return request

    def messages_full_converter(self, generator: ChatCompletionResponse) -> AnthropicMessagesResponse:
        """As vLLM's own, with all members; a call whose arguments were cut has none."""
        for call in generator.choices[0].message.tool_calls or []:
            try:
                json.loads(call.function.arguments)
            except ValueError:
                call.function.arguments = "{}"
        answer = super().messages_full_converter(generator)
        return _Message.model_construct(**dict(answer))

    async def message_stream_converter(self, generator: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """As vLLM's own, which would take an error of the chat for a chunk; thoughts begin with all members."""
        errors: list[str] = []

        async def chunks() -> AsyncGenerator[str, None]:
            async for item in generator:
                if item.startswith(_ERROR):
                    errors.append(item)
                    return
                yield item

        async for event in super().message_stream_converter(chunks()):
            yield _with_signature(event) if event.startswith(_BLOCK) else event
        for item in errors:
            yield f"event: error\n{item}"

    async def count_tokens(self, request: Any, raw_request: Any = None) -> Any:
        """As vLLM's own, without what nobody asked for."""
        answer = await super().count_tokens(request, raw_request)
        if isinstance(answer, AnthropicCountTokensResponse):
            answer.context_management = None
        return answer


def _with_signature(event: str) -> str:
    head, data = event.split("data: ", 1)
    document = json.loads(data)
    block = document["content_block"]
    if block["type"] != "thinking" or block.get("signature") is not None:
        return event
    block["signature"] = ""
    return f"{head}data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"


class _Message(AnthropicMessagesResponse):
    """A whole answer: its model stands before its content, and why it stopped is told even where that is nothing."""

    def model_dump(self, **options: Any) -> dict[str, Any]:
        found = super().model_dump(**options)
        head = {name: found.pop(name) for name in ("id", "type", "role", "model")}
        return {**head, "stop_reason": None, "stop_sequence": None, **found}


def use_messages(app: Any) -> None:
    """Let an application of vLLM serve Anthropic's API so."""
    serving = getattr(app.state, "anthropic_serving_messages", None)
    if serving is not None:
        serving.__class__ = Messages
        serving.parser_cls = read_cut_answers(serving.parser_cls)
