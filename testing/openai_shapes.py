"""The shapes of OpenAI's answers: the SDK's own types, strictly; nulls that a shape does not allow are dropped."""

import base64
import json
from array import array
from typing import Any

import httpx
from openai.types import Batch, CreateEmbeddingResponse, FileObject, Model
from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.fine_tuning import FineTuningJob
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

#: What the events of a stream are.
_EVENTS: dict[str, Any] = {"/v1/chat/completions": ChatCompletionChunk, "/v1/responses": ResponseStreamEvent}
#: What else there is, by its ``object``.
_SHAPES: dict[str, type[BaseModel]] = {
    "chat.completion": ChatCompletion,
    "chat.completion.chunk": ChatCompletionChunk,
    "text_completion": TextCompletion,
    "response": Response,
    "file": FileObject,
    "batch": Batch,
    "fine_tuning.job": FineTuningJob,
    "model": Model,
}


def validate(document: Any) -> None:
    """Raise what pydantic raises for a document that its shape does not allow."""
    if document.get("object") == "list":
        if document.get("usage") is not None:
            # The SDK asks for base64, and decodes it after this.
            for each in document["data"]:
                packed = each["embedding"]
                each["embedding"] = list(array("f", base64.b64decode(packed))) if isinstance(packed, str) else packed
            CreateEmbeddingResponse.model_validate_json(json.dumps(document))
            return
        for each in document["data"]:
            validate(each)
    elif document.get("deleted") is None and document.get("object") in _SHAPES:
        if document.get("status") == "paused":
            # The enum of OpenAI's own document lacks it, and its example has it.
            return
        _SHAPES[document["object"]].model_validate_json(json.dumps(without_nulls(document)), strict=False)


def without_nulls(value: Any) -> Any:
    """What vLLM says beyond the shapes is often null."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None or name in _KEPT_NULLS}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


#: Members that a shape requires and allows to be null.
_KEPT_NULLS = {
    *("error", "incomplete_details", "instructions", "metadata", "temperature", "top_p", "content", "refusal"),
    *("finish_reason", "logprobs", "fine_tuned_model", "finished_at", "trained_tokens", "validation_file", "tokens"),
}


def validate_event(path: str, document: Any) -> None:
    """The same for an event of a stream of a path."""
    TypeAdapter(_EVENTS[path]).validate_json(json.dumps(without_nulls(document)), strict=False)


class Shapes(httpx.Client):
    """Checks every answer against the SDK's own types, strictly; nulls that a shape does not allow are dropped."""

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        answer = super().send(request, **options)
        if answer.status_code == 200 and "json" in answer.headers.get("content-type", ""):
            answer.read()
            validate(answer.json())
        return answer
