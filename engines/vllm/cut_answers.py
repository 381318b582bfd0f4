"""What a whole answer holds that was cut among its tool calls: the same as its stream.

vLLM reads a whole answer in one go, and where a call is not closed it takes all of them for text. Read token by token,
as a stream is, what was closed is a call, and what was begun is one that was begun.
"""

import logging
from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream
from vllm.outputs import CompletionOutput

from engines.vllm.internals import FunctionCall, Parser

log = logging.getLogger(__name__)

#: Thoughts, text and calls of an answer.
_Parsed = tuple[str | None, str | None, list[FunctionCall] | None]


class CutText(str):
    """The text of an answer that ``max_tokens`` cut. vLLM hands its parsers the text alone."""

    __slots__ = ()


def mark_cut(output: CompletionOutput) -> None:
    """Let the parser of a whole answer know whether it was cut."""
    if output.finish_reason == "length":
        output.text = CutText(output.text)


def read_cut_answers(parser_class: type[Parser] | None) -> type[Parser] | None:
    """Return vLLM's parser of a model's answers, but for those that were cut."""
    if parser_class is None:
        return None

    class CutAnswers(parser_class):  # type: ignore[misc, valid-type]
        def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(tokenizer, *args, **kwargs)
            self._own_tokenizer = tokenizer

        def set_prompt_token_ids(self, prompt_token_ids: Any) -> None:
            self._prompt_ids = prompt_token_ids
            super().set_prompt_token_ids(prompt_token_ids)

        def parse(
            self,
            model_output: str,
            request: Any,
            enable_auto_tools: bool = False,
            model_output_token_ids: Sequence[int] = (),
        ) -> Any:
            if request.tools and isinstance(model_output, CutText):
                found = _read(self, model_output, request, list(model_output_token_ids))
                if found is not None:
                    return found
            return super().parse(str(model_output), request, enable_auto_tools, model_output_token_ids)

        def parse_delta(self, *args: Any, **kwargs: Any) -> Any:
            """As vLLM's own; the delta that names a call has arguments, as clients add to them."""
            delta = super().parse_delta(*args, **kwargs)
            for call in (delta and delta.tool_calls) or ():
                if call.function is not None and call.function.name and call.function.arguments is None:
                    call.function.arguments = ""
            return delta

    return CutAnswers


def _read(parser: Any, text: str, request: Any, tokens: list[int]) -> _Parsed | None:
    """Return what a stream of these tokens says; None where they cannot be told one by one."""
    pieces = _pieces(parser._own_tokenizer, tokens, bool(request.skip_special_tokens), text)
    if pieces is None:
        return None
    thoughts = content = ""
    calls: dict[int, FunctionCall] = {}
    for number, (token, piece) in enumerate(zip(tokens, pieces, strict=True)):
        prompt = getattr(parser, "_prompt_ids", None)
        delta = parser.parse_delta(piece, [token], request, prompt, finished=number == len(tokens) - 1)
        if delta is None:
            continue
        thoughts += delta.reasoning or ""
        content += delta.content or ""
        for each in delta.tool_calls or []:
            call = calls.setdefault(each.index, FunctionCall(id=each.id, name="", arguments=""))
            call.name = each.function.name or call.name if each.function else call.name
            call.arguments += (each.function.arguments or "") if each.function else ""
    return thoughts or None, content or None, [calls[index] for index in sorted(calls)] or None


def _pieces(tokenizer: Any, tokens: list[int], skip_special_tokens: bool, text: str) -> list[str] | None:
    """Return the text of each token; None where together they are not the whole."""
    inner = getattr(tokenizer, "_tokenizer", None)
    if inner is None:
        return None
    stream = DecodeStream(skip_special_tokens=skip_special_tokens)
    pieces = [stream.step(inner, token) or "" for token in tokens]
    if "".join(pieces) != text:
        log.debug("A cut answer is read as a whole: its tokens do not spell it")
        return None
    return pieces
