"""``python testing/sdk_clients.py``: LangChain, LiteLLM, Anthropic's SDK against a server; a line of JSON for each try.

Runs in an environment of its own (``requirements-sdk.txt``), without this project's packages. ``V1``, ``KEY`` and
``MODEL`` come from the environment; the model is ``testing/tool_model``.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import httpx2
import litellm
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, TypeAdapter

V1, KEY, MODEL = os.environ["V1"], os.environ["KEY"], os.environ["MODEL"]
ROOT = V1.removesuffix("/v1")
COUNT, CALLS = "Count from 1 to 80, one per line.", "call f with a=x, then g"
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
    for name, properties in (("f", {"a": {"type": "string"}}), ("g", {}))
]


def attempt(name: str, do: Callable[[], Any]) -> None:
    """Write what came of it."""
    try:
        found = {"name": name, "value": do()}
    except Exception as error:
        found = {"name": name, "error": f"{type(error).__name__}: {error}"[:2000]}
    sys.stdout.write(json.dumps(found, default=str) + "\n")


#: Bodies of Anthropic's paths.
RECORDED: dict[str, list[bytes]] = {}


def recorded(kind: type[Any], stream: Any, path: str) -> Any:
    """Return an answer's body, which is told as a line of JSON once its reader is done. ``kind``: of the library."""
    parts: list[bytes] = []

    def __iter__(self: Any) -> Iterator[bytes]:
        for part in stream:
            parts.append(part)
            yield part

    def close(self: Any) -> None:
        stream.close()
        body = b"".join(parts)
        if path.startswith("/v1/messages"):
            RECORDED.setdefault(path, []).append(body)
        else:
            sys.stdout.write(json.dumps({"answered": path, "body": body.decode()}) + "\n")

    return type("Recorded", (kind,), {"__iter__": __iter__, "close": close})()


def record_answers(library: Any) -> None:
    """Let whatever asks by a library (``httpx``, and what came after it) have its answers told."""
    ask = library.HTTPTransport.handle_request

    def handle_request(self: Any, request: Any) -> Any:
        answer = ask(self, request)
        if answer.status_code == 200:
            answer.stream = recorded(library.SyncByteStream, answer.stream, request.url.path)
        return answer

    library.HTTPTransport.handle_request = handle_request


def check_messages(body: bytes) -> int:
    """Return how many documents of Anthropic's shapes an answer holds. Raises what pydantic raises."""
    if not body.startswith(b"event: "):
        document = json.loads(body)
        shape: Any = Message if "content" in document else MessageTokensCount
        shape.model_validate(document)
        return 1
    events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: ")]
    for event in events:
        if event["type"] != "ping":
            TypeAdapter(RawMessageStreamEvent).validate_python(event)
    return len(events)


@tool
def f(a: str) -> str:
    """Takes a text."""
    return a


@tool
def g() -> str:
    """Takes nothing."""
    return ""


class Number(BaseModel):
    """A number."""

    n: int


def text_of(message: Any) -> str:
    """LangChain's text, whether it is a value or a method in this version."""
    return message.text if isinstance(message.text, str) else message.text()


def langchain(name: str, model: Any) -> None:
    """What agents do with a chat model."""
    bound = model.bind_tools([f, g])

    def calls(message: Any) -> list[Any]:
        return [(call["name"], call["args"]) for call in message.tool_calls]

    def streamed_calls() -> list[Any]:
        whole: Any = None
        for chunk in bound.stream(CALLS):
            whole = chunk if whole is None else whole + chunk
        return calls(whole)

    def sent_back() -> str:
        turns: list[BaseMessage] = [HumanMessage(CALLS)]
        answer: AIMessage = bound.invoke(turns)
        turns.append(answer)
        turns += [ToolMessage("sunny", tool_call_id=str(call["id"])) for call in answer.tool_calls]
        return text_of(bound.invoke(turns))

    attempt(f"{name}: whole", lambda: text_of(model.invoke(COUNT)))
    attempt(f"{name}: streamed", lambda: "".join(text_of(chunk) for chunk in model.stream(COUNT)))
    attempt(f"{name}: tools", lambda: calls(bound.invoke(CALLS)))
    attempt(f"{name}: tools streamed", streamed_calls)
    attempt(f"{name}: tools sent back", sent_back)


def main() -> None:
    for library in (httpx, httpx2):
        record_answers(library)
    common: Any = {"model": MODEL, "api_key": KEY, "temperature": 0, "max_tokens": 600}
    chat = ChatOpenAI(base_url=V1, **common)
    langchain("langchain chat", chat)
    langchain("langchain responses", ChatOpenAI(base_url=V1, use_responses_api=True, **common))
    langchain("langchain anthropic", ChatAnthropic(base_url=ROOT, **common))
    attempt("langchain chat: parsed", lambda: type(chat.with_structured_output(Number).invoke("x")).__name__)
    embedder = OpenAIEmbeddings(model="vectors", base_url=V1, api_key=KEY, check_embedding_ctx_length=False)
    attempt("langchain: embeddings", lambda: [len(each) for each in embedder.embed_documents(["a", "b c"])])

    litellm.suppress_debug_info = True
    options: Any = {"api_base": V1, "api_key": KEY, "temperature": 0, "max_tokens": 600}
    asked: Any = [{"role": "user", "content": COUNT}]

    def complete(model: str, **more: Any) -> Any:
        return litellm.completion(model=model, **{"messages": asked, **options, **more})

    attempt("litellm: whole", lambda: complete(f"openai/{MODEL}").choices[0].message.content)
    attempt(
        "litellm: streamed",
        lambda: "".join(
            chunk.choices[0].delta.content or "" for chunk in complete(f"openai/{MODEL}", stream=True) if chunk.choices
        ),
    )
    attempt(
        "litellm: tools",
        lambda: [
            (call.function.name, json.loads(call.function.arguments))
            for call in complete(f"openai/{MODEL}", messages=[{"role": "user", "content": CALLS}], tools=TOOLS)
            .choices[0]
            .message.tool_calls
        ],
    )
    attempt("litellm: thoughts", lambda: complete(f"hosted_vllm/{MODEL}").choices[0].message.reasoning_content)
    attempt(
        "litellm: anthropic",
        lambda: complete(f"anthropic/{MODEL}", api_base=ROOT, temperature=None).choices[0].message.content,
    )
    attempt(
        "litellm: responses",
        lambda: (
            litellm.responses(model=f"openai/{MODEL}", input="My name is Bo.", temperature=0, api_base=V1, api_key=KEY)
            .output[-1]
            .content[0]
            .text
        ),
    )

    with anthropic.Anthropic(base_url=ROOT, api_key=KEY) as client:
        message: Any = {"model": MODEL, "max_tokens": 600, "messages": asked, "extra_body": {"temperature": 0}}
        attempt("anthropic: whole", lambda: client.messages.create(**message).content[-1].text)

        def streamed() -> list[Any]:
            with client.messages.stream(**message) as stream:
                text = "".join(stream.text_stream)
                return [text, stream.get_final_message().stop_reason]

        attempt("anthropic: streamed", streamed)
        tools: Any = [{"name": "f", "input_schema": {"type": "object", "properties": {"a": {"type": "string"}}}}]
        calling = {**message, "messages": [{"role": "user", "content": CALLS}], "tools": tools}
        forced = {**calling, "tool_choice": {"type": "tool", "name": "f"}}

        def called() -> list[str]:
            blocks = client.messages.create(**forced).content
            return [block.name for block in blocks if block.type == "tool_use"]

        attempt("anthropic: forced", called)
        counted = {name: calling[name] for name in ("model", "messages", "tools")}
        attempt("anthropic: counted", lambda: client.messages.count_tokens(**counted).input_tokens > 10)
        attempt("anthropic: unknown", lambda: client.messages.create(**{**message, "model": "nope"}))

    for path, bodies in RECORDED.items():
        attempt(f"shapes: {path}", lambda bodies=bodies: [check_messages(body) for body in bodies])  # type: ignore[misc]


if __name__ == "__main__":
    main()
