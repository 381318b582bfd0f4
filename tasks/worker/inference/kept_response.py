"""A response of OpenAI's Responses API, kept for whoever asks for it again or goes on from it."""

import json
from typing import Any

from store.redis.responses import Place, keep_result
from store.token_log.publisher import Publisher
from store.token_log.response_error import response_error

#: The last events of a stream, which hold the whole response.
_ENDS = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")
_BEGINNING, _ERROR = b"event: response.created\n", b"event: error\n"
_DATA = b"\ndata: "


class KeptResponse:
    """Looks for the response in the answer to one call."""

    def __init__(self, publisher: Publisher, place: Place) -> None:
        self._publisher = publisher
        self._place = place
        self._begun: dict[str, Any] = {}
        self._result: bytes | None = None

    def observe_delivered(self, events: bytes) -> None:
        """What an earlier worker has delivered of a stream."""
        for event in events.split(b"\n\n"):
            self.observe(event, streamed=True)

    def observe(self, part: bytes, streamed: bool) -> bool:
        """A part of the answer: an event, or the whole of it. Return whether the response is there to be kept."""
        if not streamed:
            self._result = part
        elif part.startswith(_BEGINNING):
            self._begun = _event(part)["response"]
        elif part.startswith(_ENDS):
            self._result = _encode(_event(part)["response"])
        elif part.startswith(_ERROR):
            error = response_error(_event(part)["error"])
            self._result = _encode({**self._begun, "status": "failed", "error": error})
        return self._result is not None

    async def save(self) -> None:
        """Keep what was found; a Redis that is away is waited for."""
        result, publisher = self._result, self._publisher
        if result is not None:
            await publisher.retry_until_available(lambda: keep_result(publisher.commands, self._place, result))


def _event(part: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(part.partition(_DATA)[2])
    return found


def _encode(response: dict[str, Any]) -> bytes:
    return json.dumps(response, ensure_ascii=False).encode()
