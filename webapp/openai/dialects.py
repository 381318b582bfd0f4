"""How each API of ``/v1`` tells an error in the middle of a stream, and ends it."""

import json
from collections.abc import Callable
from typing import Any, Protocol

from store.token_log.entries import encode
from store.token_log.outcomes import Failure
from store.token_log.response_error import response_error
from webapp.http import sse
from webapp.openai.anthropic_error import anthropic_error_body, from_openai
from webapp.openai.error_body import error_body

#: The last event of OpenAI's streams, after an error too: clients that wait for it would hang.
_DONE = sse.event(b"[DONE]")
#: How a worker tells an error in a stream of named events; the rest is OpenAI's error shape.
_ERROR_EVENT = b"event: error\ndata: "


class Dialect(Protocol):
    """The words of one stream. It is shown what has gone out before."""

    def pass_on(self, data: bytes) -> bytes:
        """Return what the client gets of a worker's events."""

    def error(self, failure: Failure) -> bytes:
        """Return the events that tell a failure and end the stream."""

    def refusal(self, document: bytes) -> bytes:
        """Return the events for a worker's refusal (OpenAI's error shape), and end the stream."""

    def refusal_body(self, document: bytes, status: int) -> bytes:
        """Return the body of an answer that is a worker's refusal."""


class OpenAIDialect:
    """Chat and text completions."""

    def pass_on(self, data: bytes) -> bytes:
        return data

    def error(self, failure: Failure) -> bytes:
        return self.refusal(encode(error_body(failure)))

    def refusal(self, document: bytes) -> bytes:
        return sse.event(document) + _DONE

    def refusal_body(self, document: bytes, status: int) -> bytes:
        return document


class AnthropicDialect:
    """``/v1/messages``."""

    def pass_on(self, data: bytes) -> bytes:
        if _ERROR_EVENT in data:
            before, document = _split(data)
            return before + self.refusal(document)
        return data

    def error(self, failure: Failure) -> bytes:
        return sse.event(encode(anthropic_error_body(failure)), name="error")

    def refusal(self, document: bytes) -> bytes:
        return sse.event(self.refusal_body(document, 0), name="error")

    def refusal_body(self, document: bytes, status: int) -> bytes:
        return encode(from_openai(json.loads(document), status))


class ResponsesDialect(OpenAIDialect):
    """``/v1/responses``: the response itself fails, and its events go on being numbered."""

    def __init__(self) -> None:
        self._response: dict[str, Any] = {"object": "response", "output": []}
        self._number = 0

    def pass_on(self, data: bytes) -> bytes:
        if _ERROR_EVENT in data:
            before, document = _split(data)
            return self.pass_on(before) + self.refusal(document)
        for event in data.split(b"\n\n"):
            if event and not self._number:
                self._response = json.loads(event.rpartition(b"\ndata: ")[2]).get("response", self._response)
            self._number += bool(event)
        return data

    def refusal(self, document: bytes) -> bytes:
        response = {**self._response, "status": "failed", "error": response_error(json.loads(document)["error"])}
        event = {"type": "response.failed", "sequence_number": self._number, "response": response}
        return sse.event(encode(event), name="response.failed")


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Return what comes before the event of an error, and what that says; nothing comes behind it."""
    before, _, rest = data.partition(_ERROR_EVENT)
    return before, rest.partition(b"\n\n")[0]


class Skipping:
    """Leaves out events that a client that came back has received."""

    def __init__(self, dialect: Dialect, received: int) -> None:
        self._dialect = dialect
        self._left = received
        self.refusal_body = dialect.refusal_body

    def pass_on(self, data: bytes) -> bytes:
        return self._rest(self._dialect.pass_on(data))

    def error(self, failure: Failure) -> bytes:
        return self._rest(self._dialect.error(failure))

    def refusal(self, document: bytes) -> bytes:
        return self._rest(self._dialect.refusal(document))

    def _rest(self, data: bytes) -> bytes:
        while self._left and data:
            _, _, data = data.partition(b"\n\n")
            self._left -= 1
        return data


DialectMaker = Callable[[], Dialect]
_BY_PATH: dict[str, DialectMaker] = {"/v1/messages": AnthropicDialect, "/v1/responses": ResponsesDialect}


def dialect_of(path: str) -> Dialect:
    """Return the dialect of the streams of a path."""
    return _BY_PATH.get(path, OpenAIDialect)()
