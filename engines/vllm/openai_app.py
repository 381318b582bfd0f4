"""vLLM's own OpenAI-compatible application, called in process: no socket, no copy of it here."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import aclosing
from contextvars import copy_context
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.lora.request import LoRARequest

from engines.model_spec import ModelSpec
from engines.types import HttpCall, HttpPart, HttpStart
from engines.vllm.arguments import chat_template_text, generation_config
from engines.vllm.call_tokens import CURRENT_CALL, CallTokens
from engines.vllm.chat import use_chat
from engines.vllm.completions import use_completions
from engines.vllm.direct_streams import CONTENT_TYPE, DirectStreams
from engines.vllm.internals import build_openai_app, has_chat_template, name_adapter
from engines.vllm.messages import use_messages
from engines.vllm.responses import use_responses

#: In the body of a call that offers tools, whichever API it is of.
_TOOLS = b'"tools"'
#: How long the application may take to end what it does for a client that left. Seconds.
_DISCONNECT_SECONDS = 5.0
#: An ASGI message.
_Message = MutableMapping[str, Any]


class OpenAIApp:
    """Drives vLLM's ASGI application for one engine."""

    def __init__(self, app: Any, has_chat_template: bool) -> None:
        self._app = app
        self._direct_streams = DirectStreams(app)
        #: Whether the model can chat.
        self.has_chat_template = has_chat_template

    @classmethod
    async def create(cls, client: EngineClient, spec: ModelSpec) -> "OpenAIApp":
        """Build the application on a running engine."""
        app = await build_openai_app(client, _options(spec))
        use_chat(app)
        use_completions(app)
        use_messages(app)
        use_responses(app)
        return cls(app, spec.chat_template is not None or has_chat_template(client))

    def name_adapter(self, name: str, adapter: LoRARequest) -> None:
        """Let the application know a loaded adapter as a model called ``name``."""
        name_adapter(self._app, name, adapter)

    async def call(self, call: HttpCall) -> AsyncGenerator[HttpStart | HttpPart, None]:
        """Yield the answer's head, then its body as it is written.

        Closing the generator tells the application that the client left, which aborts
        the generation.
        """
        tokens = CallTokens(call, unmerged=_TOOLS in call.body)
        # Each request is a task of its own.
        CURRENT_CALL.set(tokens)
        try:
            events = await self._direct_streams.begin(call)
            if events is not None:
                yield HttpStart(200, CONTENT_TYPE)
                async with aclosing(events):
                    async for event in events:
                        # The next output is taken for the next event: what was taken until now is in this one.
                        yield HttpPart(event.encode(), tokens.take())
                return
        finally:
            CURRENT_CALL.set(None)
            await tokens.stopped()
        async with aclosing(self._ask_application(call)) as parts:
            async for part in parts:
                yield part

    async def _ask_application(self, call: HttpCall) -> AsyncGenerator[HttpStart | HttpPart, None]:
        tokens = CallTokens(call, unmerged=_TOOLS in call.body)
        connection = _Connection(call, tokens)
        # The task, and what it starts, work for this call.
        context = copy_context()
        context.run(CURRENT_CALL.set, tokens)
        work = self._app(connection.scope, connection.receive, connection.send)
        task = asyncio.create_task(work, context=context)
        task.add_done_callback(lambda _: connection.parts.put_nowait(None))
        try:
            while (part := await connection.parts.get()) is not None:
                yield part
            # A failure inside the application is raised here, after what it had sent.
            await task
        finally:
            if not await connection.on_disconnect(task):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
            await tokens.stopped()


def _options(spec: ModelSpec) -> dict[str, str | None]:
    """Return what ``vllm serve`` would be told beside the engine's arguments."""
    options: dict[str, str | None] = {
        "model": spec.location,
        "served-model-name": spec.id,
        "generation-config": generation_config(spec),
        "chat-template": chat_template_text(spec),
        "tool-call-parser": spec.tool_call_parser,
        "reasoning-parser": spec.reasoning_parser,
    }
    if spec.reasoning_parser is not None:
        # Where ``vllm serve`` looks for it: its own engine puts it there, which has not read these options.
        options["structured-outputs-config"] = json.dumps({"reasoning_parser": spec.reasoning_parser})
    options = {name: value for name, value in options.items() if value is not None}
    if spec.tool_call_parser is not None and spec.enable_auto_tools:
        options["enable-auto-tool-choice"] = None
    return options


class _Connection:
    """One request as an ASGI server would hold it."""

    def __init__(self, call: HttpCall, tokens: CallTokens) -> None:
        self.parts: asyncio.Queue[HttpStart | HttpPart | None] = asyncio.Queue()
        self._tokens = tokens
        self._disconnected = asyncio.Event()
        #: Whether the application waits for its client to leave, until when, and whether it was told.
        self._watched = False
        self._unwatched = asyncio.Event()
        self._told = False
        self._body: bytes | None = call.body
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": call.path,
            "raw_path": call.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(call.body)).encode()),
                # vLLM builds the answer's id from this.
                (b"x-request-id", call.request_id.encode()),
            ],
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
            "state": {},
        }

    async def receive(self) -> _Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        self._watched = True
        self._unwatched.clear()
        try:
            await self._disconnected.wait()
            self._told = True
        finally:
            self._unwatched.set()
        return {"type": "http.disconnect"}

    async def on_disconnect(self, task: asyncio.Task[None]) -> bool:
        """Tell the application that its client left. False where it does not hear that: while it sends a stream.

        A whole answer it makes in a task of its own, which it ends when it is told, and not when ``task`` is cancelled.
        """
        self._disconnected.set()
        if self._watched and not task.done():
            await self._unwatched.wait()
        if not self._told:
            return False
        await asyncio.wait({task}, timeout=_DISCONNECT_SECONDS)
        return task.done()

    async def send(self, message: _Message) -> None:
        if message["type"] == "http.response.start":
            headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
            content_type = headers.get("content-type", "application/json")
            self.parts.put_nowait(HttpStart(message["status"], content_type))
        elif message["type"] == "http.response.body" and message.get("body"):
            # The application takes the engine's next output once this is sent: what was taken until now is in it.
            self.parts.put_nowait(HttpPart(bytes(message["body"]), self._tokens.take()))
