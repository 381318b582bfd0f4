"""Responses that go on from earlier ones, and that are asked for again: whichever worker made them."""

import json
from dataclasses import dataclass
from typing import Any

import redis

from engines.registry import DEFAULT_ALIAS
from services.access import Access
from services.errors import InvalidRequest, ResponseNotFound
from services.inference.responses_body import PATH, response_id
from services.inference.submission import OpenAIRequest
from store.principal import Principal
from store.redis.request_records import RequestRecord, RequestStore
from store.redis.responses import ResponseStore, StoredResponse
from store.token_log import log as token_log
from store.token_log.entries import Kind, Outcome, Reason
from store.token_log.response_error import response_error

#: Members of a request that its response repeats.
_REPEATED = (
    "background",
    "instructions",
    "max_output_tokens",
    "metadata",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
)
#: Members that mean nothing to a worker.
_OURS = ("background", "include_performance")
#: A conversation that is longer is not gone on with: each of its responses is kept with all of it. Bytes.
_MAX_CHAIN_BYTES = 4 * 1024 * 1024
#: What an input item without a name of its own gets in a list.
_ITEM_ID = "item_{}_{}"

Item = dict[str, Any]


@dataclass(frozen=True)
class InputPage:
    """Input items, newest first unless asked otherwise, and whether more follow."""

    items: list[Item]
    has_more: bool


@dataclass(frozen=True)
class ResponsesService:
    """The Responses API, but for the answering itself. Methods raise ``redis.RedisError``."""

    store: ResponseStore
    access: Access
    client: redis.Redis
    requests: RequestStore

    def request(self, principal: Principal, body: dict[str, Any]) -> OpenAIRequest:
        """Return what is to be admitted for a checked body. Raises ``InvalidRequest``."""
        own = _items(body["input"])
        items = [*self._earlier(principal, body.get("previous_response_id")), *own]
        model = body.get("model")
        kept = body.get("store") is not False

        def begin(record: RequestRecord) -> None:
            outline = {name: body[name] for name in (*_REPEATED, "previous_response_id") if name in body}
            outline |= {"created_at": int(record.created), "model": model or record.model}
            stored = StoredResponse(response_id(record.id), record.tenant, record.id, items, len(own), outline)
            self.store.begin(stored)

        return OpenAIRequest(
            model or DEFAULT_ALIAS,
            PATH,
            {**{name: value for name, value in body.items() if name not in _OURS}, "input": items},
            model is not None,
            tells_performance=bool(body.get("include_performance")),
            detached=bool(body.get("background")),
            on_record=begin if kept else None,
            on_refusal=self._discard if kept else None,
        )

    def _discard(self, record: RequestRecord) -> None:
        """Forget a response that was never begun: its client got an error, and no id."""
        stored = self.store.load(response_id(record.id))
        if stored is not None and stored.result is None:
            self.store.delete(stored)

    def require_kept(self, principal: Principal, wanted: str) -> None:
        """Raises ``ResponseNotFound``."""
        self._find(principal, wanted)

    def show(self, principal: Principal, wanted: str) -> Item:
        """Return a response as it is now. Raises ``ResponseNotFound``."""
        stored = self._find(principal, wanted)
        if stored.result is None:
            return self._unfinished(stored)
        # As it was asked for, whoever made the end.
        return {**stored.result, "background": bool(stored.outline.get("background"))}

    def input_items(
        self, principal: Principal, wanted: str, limit: int, after: str | None, newest_first: bool
    ) -> InputPage:
        """Return what was put in, earlier turns included. Raises ``ResponseNotFound``, ``InvalidRequest``."""
        stored = self._find(principal, wanted)
        items: list[Item] = []
        seen: set[str] = set()
        for number, item in enumerate(stored.items):
            own = item.get("id")
            # Pages are asked for by id: each has one, and no two the same.
            unique = own if isinstance(own, str) and own and own not in seen else _ITEM_ID.format(wanted, number)
            seen.add(unique)
            items.append({**_shown(item), "id": unique})
        if newest_first:
            items.reverse()
        if after is not None:
            ids = [item["id"] for item in items]
            if after not in ids:
                raise InvalidRequest.of("invalid_value", "after", f"Must be the id of an input item of '{wanted}'")
            items = items[ids.index(after) + 1 :]
        return InputPage(items[:limit], len(items) > limit)

    def delete(self, principal: Principal, wanted: str) -> str:
        """Forget a response, and return the id of its request. Raises ``ResponseNotFound``."""
        stored = self._find(principal, wanted)
        self.store.delete(stored)
        return stored.request_id

    def require_cancellable(self, principal: Principal, wanted: str) -> None:
        """Raises ``ResponseNotFound``, and ``InvalidRequest`` for one that is not in the background."""
        if not self._find(principal, wanted).outline.get("background"):
            description = "Only a response that runs in the background can be cancelled; end the connection instead"
            raise InvalidRequest.of("invalid_value", "response_id", description)

    def _find(self, principal: Principal, wanted: str) -> StoredResponse:
        stored = self.store.load(wanted)
        if stored is None or not self.access.can_see(principal, stored.tenant):
            raise ResponseNotFound(wanted)
        return stored

    def _earlier(self, principal: Principal, previous: str | None) -> list[Item]:
        """Return the conversation that a request goes on from."""
        if previous is None:
            return []
        try:
            stored = self._find(principal, previous)
        except ResponseNotFound:
            raise InvalidRequest.of(
                "previous_response_not_found",
                "previous_response_id",
                f"There is no response '{previous}': it was not stored, was deleted, or has expired",
            ) from None
        if stored.result is None:
            state = self._unfinished(stored)["status"]
            description = f"Response '{previous}' cannot be gone on from: its status is '{state}'"
            raise InvalidRequest.of("previous_response_not_found", "previous_response_id", description)
        items = [*stored.items, *stored.result.get("output", [])]
        if len(json.dumps(items)) > _MAX_CHAIN_BYTES:
            description = f"The conversation is longer than {_MAX_CHAIN_BYTES} bytes; begin a new one"
            raise InvalidRequest.of("conversation_too_long", "previous_response_id", description)
        return items

    def _unfinished(self, stored: StoredResponse) -> Item:
        """Return a response without a result: it is being made, or nothing came of it."""
        last = token_log.last(self.client, stored.request_id)
        status, error = "in_progress", None
        if last is not None and last.kind == Kind.RELEASE and last.json().get("reason") == Reason.CLIENT_GONE:
            # Nobody makes it any more, unless its client comes back for the stream.
            status = "cancelled"
        elif last is None and stored.outline.get("background") and self.requests.load(stored.request_id) is not None:
            status = "queued"
        elif last is None or last.terminal:
            end = last.json() if last is not None else {}
            status = "cancelled" if end.get("outcome") == Outcome.CANCELLED else "failed"
            if status == "failed":
                message = end.get("error", {}).get("message", "The response was lost")
                error = response_error({"type": "server_error", "message": message})
        known = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "metadata": {}, **stored.outline}
        return {"id": stored.id, "object": "response", **known, "status": status, "error": error, "output": []}


def _shown(item: Item) -> Item:
    """Return an input item as lists show it: text that was given short is a part."""
    kind, content = item.get("type", "message"), item.get("content")
    if kind != "message" or not isinstance(content, str):
        return {**item, "type": kind}
    part = "output_text" if item.get("role") == "assistant" else "input_text"
    return {**item, "type": kind, "content": [{"type": part, "text": content}]}


def _items(given: str | list[Item]) -> list[Item]:
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return given
