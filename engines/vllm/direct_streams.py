"""Streams of chat and completions, asked of vLLM's serving objects without the routes of its application around them.

The routes (FastAPI) cost a request as much as all else that vLLM's surface does for it, and each chunk a task and a
queue. What is refused, or is no stream, is the application's: it has the words for that.
"""

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from starlette.requests import Request

from engines.types import HttpCall
from engines.vllm.chat import CHAT_PATH
from engines.vllm.completions import COMPLETIONS_PATH
from engines.vllm.internals import ChatCompletionRequest, CompletionRequest, ErrorResponse

log = logging.getLogger(__name__)

#: What the application says of a stream.
CONTENT_TYPE = "text/event-stream; charset=utf-8"
_STREAM = b'"stream":'

Events = AsyncGenerator[str, None]


class DirectStreams:
    """The streams of one application."""

    def __init__(self, app: Any) -> None:
        self._app = app
        chat = getattr(app.state, "openai_serving_chat", None)
        completion = getattr(app.state, "openai_serving_completion", None)
        self._asked: dict[str, tuple[type[Any], Callable[[Any, Request], Awaitable[Any]]]] = {}
        if chat is not None:
            self._asked[CHAT_PATH] = ChatCompletionRequest, chat.create_chat_completion
        if completion is not None:
            self._asked[COMPLETIONS_PATH] = CompletionRequest, completion.create_completion

    async def begin(self, call: HttpCall) -> Events | None:
        """Return the events of a call's answer; None where the application must be asked.

        Nothing has reached the engine by then: it is asked with the first event.
        """
        known = self._asked.get(call.path)
        if known is None or _STREAM not in call.body:
            return None
        kind, create = known
        try:
            request = kind.model_validate(json.loads(call.body))
            if not request.stream:
                return None
            events = await create(request, self._raw(call))
        except Exception:
            # Whatever it is that it does not like, the application says it in a status and a body.
            log.debug("A stream is left to the application", exc_info=True)
            return None
        return None if isinstance(events, ErrorResponse) else events

    def _raw(self, call: HttpCall) -> Request:
        """The call as the application would show it to what serves it: the answer's id is built from this header."""
        headers = [(b"x-request-id", call.request_id.encode())]
        return Request({"type": "http", "headers": headers, "app": self._app, "state": {}})
