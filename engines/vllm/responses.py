"""OpenAI's Responses API as vLLM's application serves it, with what it leaves out of the contract put right.

Earlier turns are part of the input here, so that any worker can go on from them; vLLM's own memory of them is not used.
"""

import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any, Literal

from fastapi.responses import JSONResponse

from engines.vllm.call_tokens import CURRENT_CALL
from engines.vllm.cut_answers import mark_cut, read_cut_answers
from engines.vllm.internals import (
    ErrorResponse,
    OpenAIServingResponses,
    ResponseCompletedEvent,
    ResponsesRequest,
    ResponsesResponse,
)
from engines.vllm.text_logprobs import keep_own

log = logging.getLogger(__name__)

_CUT = "incomplete"
_BEGINNINGS = ("response.created", "response.in_progress")


class Responses(OpenAIServingResponses):
    """vLLM's own, but for the memory, and for answers that were cut, which say so."""

    async def _render_resolved_response_inputs(
        self, request: ResponsesRequest, prev_response: Any, **options: Any
    ) -> Any:
        return await super()._render_resolved_response_inputs(request, None, **options)

    def _make_response_output_items(
        self, request: ResponsesRequest, final_output: Any, *args: Any, **kwargs: Any
    ) -> Any:
        mark_cut(final_output)
        items = super()._make_response_output_items(request, final_output, *args, **kwargs)
        for item in items:
            if item.type == "message":
                keep_own(item)
        return items

    async def responses_full_generator(self, *args: Any, **kwargs: Any) -> ErrorResponse | ResponsesResponse:
        """As vLLM's own; the item that was cut is incomplete too."""
        response = await super().responses_full_generator(*args, **kwargs)
        if isinstance(response, ResponsesResponse):
            _complete(response)
            if response.status == _CUT and response.output:
                _cut(response.output[-1])
        return response

    async def responses_stream_generator(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """As vLLM's own; an answer that was cut ends with the event for that."""
        # The last item waits for what follows it: where it was cut, it is marked by then, as part of the whole.
        item_done: Any = None
        async for event in self._events(*args, **kwargs):
            ended = isinstance(event, ResponseCompletedEvent) and event.response.status == _CUT
            if event.type in _BEGINNINGS:
                _complete(event.response)
            if item_done is not None:
                yield item_done
                item_done = None
            if event.type == "response.output_item.done":
                item_done = event
            elif ended:
                yield _Incomplete(
                    type="response.incomplete", sequence_number=event.sequence_number, response=event.response
                )
            else:
                yield event
        if item_done is not None:
            yield item_done

    async def _events(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Yield vLLM's events; what fails in between is told, and does not just end the stream."""
        try:
            async for event in super().responses_stream_generator(*args, **kwargs):
                yield event
        except Exception as error:
            response = self.create_error_response(error)
            if response.error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                log.exception("A response failed in mid-stream", extra={"response_id": args[0].request_id})
            yield _Failure(response)

    def _convert_generation_error_to_streaming_response(self, error: Exception) -> str:
        # vLLM would take its own error for one of the API's events, and tell how it is none.
        raise error

    async def count_tokens(self, request: ResponsesRequest) -> Any:
        """Return how many tokens the input has, or vLLM's refusal."""
        error = await self._check_model(request)
        rendered = error or await self._render_resolved_response_inputs(request, None)
        if isinstance(rendered, ErrorResponse):
            return rendered
        return len(self._extract_prompt_components(rendered.engine_input).token_ids or ())


class _Failure:
    """An event that tells an error, in the shape of one."""

    type = "error"

    def __init__(self, response: ErrorResponse) -> None:
        self._response = response

    def model_dump_json(self, **_: Any) -> str:
        return self._response.model_dump_json()


class _Incomplete(ResponseCompletedEvent):
    type: Literal["response.incomplete"]


class _NoMemory(dict[str, Any]):
    """Stands for vLLM's memory of responses: each that is asked for is there, and part of the input."""

    def get(self, key: str, default: Any = None) -> Any:
        return key


def _complete(response: Any) -> None:
    """Fill members that vLLM leaves out, or empty, and clients read."""
    call = CURRENT_CALL.get()
    response.background = call is not None and call.detached
    response.error = None
    response.completed_at = int(time.time()) if response.status == "completed" else None
    response.metadata = response.metadata or {}
    response.text = response.text or {"format": {"type": "text"}}
    for item in response.output:
        if item.type == "reasoning":
            # One that was cut is marked after this.
            item.status = "completed"
    if not response.tools:
        response.tool_choice = "auto"


def _cut(item: Any) -> None:
    """Mark the last item of an answer that was cut; a call whose arguments are whole was not."""
    if item.type == "function_call":
        with contextlib.suppress(ValueError):
            json.loads(item.arguments)
            return
    if hasattr(item, "status"):
        item.status = _CUT


def use_responses(app: Any) -> None:
    """Let an application of vLLM serve responses so."""
    serving = getattr(app.state, "openai_serving_responses", None)
    if serving is None:
        return
    serving.__class__ = Responses
    serving.response_store = _NoMemory()
    serving.parser = read_cut_answers(serving.parser)

    async def input_tokens(request: ResponsesRequest) -> Any:
        found = await serving.count_tokens(request)
        if isinstance(found, ErrorResponse):
            return JSONResponse(found.model_dump(mode="json"), found.error.code)
        return {"object": "response.input_tokens", "input_tokens": found}

    app.add_api_route("/v1/responses/input_tokens", input_tokens, methods=["POST"])
