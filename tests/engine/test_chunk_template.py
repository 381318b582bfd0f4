"""The chunks that are written around their text: the same as vLLM's own, event by event."""

import asyncio
import warnings
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

with warnings.catch_warnings():
    # What torch and vLLM say to each other while they are imported.
    warnings.simplefilter("ignore")
    from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata
    from vllm.outputs import CompletionOutput, RequestOutput

    from engines.vllm import chunk_template
    from engines.vllm.chat import Chat
    from engines.vllm.chunk_template import ChunkTemplate
    from engines.vllm.completions import Completions
    from engines.vllm.internals import (
        ChatCompletionRequest,
        CompletionRequest,
        OpenAIServingChat,
        OpenAIServingCompletion,
    )

pytestmark = pytest.mark.filterwarnings("ignore")

EVERY_CHARACTER = "".join(chr(code) for code in range(0x3000) if not 0xD800 <= code < 0xE000) + "\U0001f600"
#: Texts of outputs: half a character shows as nothing.
TEXTS = ("", "Once ", 'upon "a" time', "", "\\ {}\n", EVERY_CHARACTER, " there was")
#: What a request asks that makes chunks differ in more than their text.
UNLIKE: tuple[dict[str, Any], ...] = (
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"return_token_ids": True},
    {"echo": True},
)


def outputs(texts: tuple[str, ...], end: str | None = "stop") -> list[RequestOutput]:
    found = []
    for number, text in enumerate(texts):
        reason = end if number == len(texts) - 1 else None
        completion = CompletionOutput(0, text, [number, number + 1], None, None, finish_reason=reason)
        found.append(RequestOutput("r", "Tell", [1, 2, 3], None, [completion], reason is not None, num_cached_tokens=1))
    return found


async def source(found: list[RequestOutput], failure: Exception | None) -> AsyncIterator[RequestOutput]:
    for output in found:
        yield output
    if failure is not None:
        raise failure


async def numbered(found: AsyncIterator[RequestOutput]) -> AsyncIterator[tuple[int, RequestOutput]]:
    async for output in found:
        yield 0, output


def serving(kind: type[Any], **more: Any) -> Any:
    """A serving object of vLLM's, as far as its streams look at it."""
    found = kind.__new__(kind)
    values = {
        "parser_cls": None,
        "enable_force_include_usage": False,
        "enable_prompt_tokens_details": True,
        "enable_per_request_metrics": False,
        "enable_log_outputs": False,
        "request_logger": None,
        "response_role": "assistant",
        "system_fingerprint": "vllm-fingerprint",
        "_include_reasoning_tokens_details": False,
        **more,
    }
    for name, value in values.items():
        setattr(found, name, value)
    return found


def chat(kind: type[Any], found: list[RequestOutput], failure: Exception | None, **body: Any) -> list[str]:
    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "Hi"}], stream=True, **body)
    events = serving(kind).chat_completion_stream_generator(
        *(request, source(found, failure), "chatcmpl-1", 'a "model"', [], None, RequestResponseMetadata(request_id="r"))
    )
    return asyncio.run(gathered(events))


def completion(kind: type[Any], found: list[RequestOutput], failure: Exception | None, **body: Any) -> list[str]:
    request = CompletionRequest(model="m", prompt="Tell", stream=True, max_tokens=9, **body)
    events = serving(kind).completion_stream_generator(
        *(request, [{}], numbered(source(found, failure)), "cmpl-1", 7, 'a "model"', 1, None),
        RequestResponseMetadata(request_id="r"),
    )
    return asyncio.run(gathered(events))


async def gathered(events: AsyncGenerator[str, None]) -> list[str]:
    return [event async for event in events]


SURFACES = ((chat, Chat, OpenAIServingChat), (completion, Completions, OpenAIServingCompletion))


@pytest.fixture(autouse=True)
def _one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """All streams of a test are made in the same second."""
    monkeypatch.setattr("vllm.entrypoints.openai.chat_completion.serving.time.time", lambda: 7.0)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that a template was used for."""
    texts: list[str] = []
    write = ChunkTemplate.write

    def noted(self: ChunkTemplate, text: str) -> str:
        texts.append(text)
        return write(self, text)

    monkeypatch.setattr(chunk_template.ChunkTemplate, "write", noted)
    return texts


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize(("ask", "ours", "theirs"), SURFACES, ids=["chat", "completions"])
@pytest.mark.parametrize("end", ["stop", "length"])
def test_every_event_is_as_vllm_writes_it(
    ask: Any, ours: type[Any], theirs: type[Any], usage: bool, end: str, written: list[str]
) -> None:
    body = {"stream_options": {"include_usage": True}} if usage else {}
    found = ask(ours, outputs(TEXTS, end), None, **body)
    assert found == ask(theirs, outputs(TEXTS, end), None, **body)
    # All but the empty one before the first text, that text itself, and the last.
    assert written == list(TEXTS[2:-1])


@pytest.mark.parametrize(("ask", "ours", "theirs"), SURFACES, ids=["chat", "completions"])
@pytest.mark.parametrize("texts", [("only",), ("", ""), ("first", "last")])
def test_short_answers_are_vllms_own(ask: Any, ours: type[Any], theirs: type[Any], texts: tuple[str, ...]) -> None:
    assert ask(ours, outputs(texts), None) == ask(theirs, outputs(texts), None)


@pytest.mark.parametrize(("ask", "ours", "theirs"), SURFACES, ids=["chat", "completions"])
@pytest.mark.parametrize("end", ["abort", "error"])
def test_an_answer_that_is_broken_off_ends_in_vllms_words(
    ask: Any, ours: type[Any], theirs: type[Any], end: str, written: list[str]
) -> None:
    assert ask(ours, outputs(TEXTS, end), None) == ask(theirs, outputs(TEXTS, end), None)
    assert written


@pytest.mark.parametrize(("ask", "ours", "theirs"), SURFACES, ids=["chat", "completions"])
def test_an_engine_that_fails_in_the_middle_is_told_in_vllms_words(
    ask: Any, ours: type[Any], theirs: type[Any], written: list[str]
) -> None:
    found = ask(ours, outputs(TEXTS, None), ValueError("no more"))
    assert found == ask(theirs, outputs(TEXTS, None), ValueError("no more"))
    assert '"error"' in found[-2]
    assert written


@pytest.mark.parametrize(("ask", "ours", "theirs"), SURFACES, ids=["chat", "completions"])
def test_outputs_that_end_without_a_reason_end_the_stream(ask: Any, ours: type[Any], theirs: type[Any]) -> None:
    assert ask(ours, outputs(TEXTS, None), None) == ask(theirs, outputs(TEXTS, None), None)


@pytest.mark.parametrize("asked", UNLIKE, ids=lambda asked: next(iter(asked)))
@pytest.mark.parametrize(("ask", "ours", "theirs"), SURFACES, ids=["chat", "completions"])
def test_chunks_that_differ_in_more_are_vllms_own(
    ask: Any, ours: type[Any], theirs: type[Any], asked: dict[str, Any], written: list[str]
) -> None:
    assert ask(ours, outputs(TEXTS), None, **asked) == ask(theirs, outputs(TEXTS), None, **asked)
    assert written == []


def test_a_client_that_leaves_in_the_middle_closes_vllms_generator() -> None:
    closed: list[bool] = []

    async def write(given: AsyncIterator[RequestOutput]) -> AsyncGenerator[str, None]:
        try:
            async for output in given:
                yield f'data: {{"content":"{output.outputs[0].text}"}}\n\n'
        finally:
            closed.append(True)

    async def main() -> None:
        events = chunk_template.written_around(
            "content", source(outputs(("a", "b", "c")), None), write, lambda output: output.outputs[0]
        )
        assert await anext(events) == 'data: {"content":"a"}\n\n'
        assert await anext(events) == 'data: {"content":"b"}\n\n'
        await events.aclose()
        assert closed == [True]

    asyncio.run(main())


def test_a_text_that_another_member_may_hold_is_no_template() -> None:
    assert ChunkTemplate.of('{"content":"a","more":{"content":"a"}}', "content", "a") is None
    assert ChunkTemplate.of('{"content":""}', "content", "") is None
    assert ChunkTemplate.of('{"content":"b"}', "content", "a") is None
