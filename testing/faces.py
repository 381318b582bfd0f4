"""Every face behind one interface, so that one situation can be driven through all of them.

A face turns a :class:`Call` into what its client sends, and what comes back into an :class:`Answer`.
"""

import http.client
import json
import socket
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from websockets.exceptions import ConnectionClosed

from testing import websocket
from testing.rpc_client import SEED, WIRE, RpcClient
from testing.sse import events
from testing.stack import Stack
from testing.waiting import until

#: Close codes of the WebSocket, as codes of the interface document.
_CLOSE_CODES = {4401: "UNAUTHORIZED", 4403: "FORBIDDEN", 4408: "UNAUTHORIZED", 1013: "INSUFFICIENT_RESOURCES"}
#: OpenAI's words, likewise.
_OPENAI_CODES = {
    "invalid_api_key": "UNAUTHORIZED",
    "insufficient_permissions": "FORBIDDEN",
    "model_not_found": "MODEL_NOT_FOUND",
    "model_not_ready": "MODEL_NOT_READY",
    "service_unavailable": "INSUFFICIENT_RESOURCES",
    "rate_limit_exceeded": "RATE_LIMITED",
    "insufficient_quota": "RATE_LIMITED",
    "internal_error": "INTERNAL_ERROR",
    "idempotency_conflict": "IDEMPOTENCY_CONFLICT",
}


@dataclass(frozen=True)
class Call:
    """What a client wants, whatever it speaks. ``key`` None sends none."""

    key: str | None
    model: str = "fake"
    prompt: str = "p"
    tokens: int = 3
    adapter: str = ""
    idempotency_key: str = ""
    #: An id, and the event to go on from: the request is followed again instead of begun.
    resume: tuple[str, str] | None = None


@dataclass
class Answer:
    """What came of a call."""

    text: str = ""
    #: Code of the interface document; empty where all went well.
    code: str = ""
    #: Seconds; None where the client was told none.
    retry_after: int | None = None
    request_id: str = ""
    #: Id of the last event, to resume from.
    last_event: str = ""
    #: Whether text came before the end, so that no header could carry a retry hint.
    begun: bool = False
    finished: bool = False
    #: What else the client was told, for a message.
    raw: str = ""


@dataclass
class Running:
    """A call that is answered in the background."""

    answer: Answer
    thread: threading.Thread
    #: Closes the client's connection.
    hang_up: Any = field(default=lambda: None)

    def join(self, seconds: float = 60) -> Answer:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), f"no end came: {self.answer}"
        return self.answer


class Face(ABC):
    """One way in."""

    name: str
    #: Whether text comes piece by piece.
    streams = True
    #: Whether a client can go on with a request by id.
    resumes = False
    #: The face's word in the log line of an answer.
    log_face = "http"

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    @abstractmethod
    def follow(self, call: Call, answer: Answer, running: Running | None = None) -> None:
        """Send the call and fill in the answer to its end."""

    def ask(self, call: Call) -> Answer:
        answer = Answer()
        self.follow(call, answer)
        return answer

    @contextmanager
    def running(self, call: Call) -> Iterator[Running]:
        """The call answered in the background; in the block some of its text has come (or it runs, where none does)."""
        held = self.begin(call)
        answer = held.answer
        if self.streams:
            until(lambda: answer.text or answer.code or answer.finished, 30, f"{self.name}: text has come")
        else:
            until(lambda: busy(self.stack, call.model) or answer.finished, 30, f"{self.name}: the request runs")
        yield held

    def begin(self, call: Call) -> Running:
        """The call answered in the background, whatever comes of it."""
        answer = Answer()
        held = Running(answer, threading.Thread())
        held.thread = threading.Thread(target=self._follow_quietly, args=(call, answer, held), daemon=True)
        held.thread.start()
        return held

    def _follow_quietly(self, call: Call, answer: Answer, running: Running) -> None:
        try:
            self.follow(call, answer, running)
        except Exception as error:
            # A connection that was closed from here.
            answer.raw = answer.raw or repr(error)


def busy(stack: Stack, model: str) -> bool:
    """Whether an engine holds a request for the model."""
    return any(worker.models.get(model, {}).get("running") for worker in stack.fleet().living)


def _headers(call: Call, bearer: bool = False) -> dict[str, str]:
    headers = {"Idempotency-Key": call.idempotency_key} if call.idempotency_key else {}
    if call.key is not None:
        headers |= {"Authorization": f"Bearer {call.key}"} if bearer else {"X-API-Key": call.key}
    return headers


def _native_body(call: Call) -> dict[str, Any]:
    body = {"modelId": call.model, "prompt": call.prompt, "generation": {"maxNewTokens": call.tokens}}
    return {**body, "adapter": call.adapter} if call.adapter else body


def _refused(answer: Answer, response: httpx.Response) -> None:
    response.read()
    error = response.json()["error"]
    answer.code = error["code"] if "details" in error else _openai_code(error)
    hint = response.headers.get("Retry-After")
    answer.retry_after = int(hint) if hint else None
    answer.raw = response.text


def _openai_code(error: dict[str, Any]) -> str:
    return _OPENAI_CODES.get(str(error["code"]), "INVALID_REQUEST" if error["type"].startswith("invalid") else "")


def _post(url: str, body: dict[str, Any], headers: dict[str, str], running: Running | None) -> httpx.Response:
    """POST over a connection that can be closed while its answer is waited for."""
    parts = httpx.URL(url)
    connection = http.client.HTTPConnection(parts.host, parts.port or 80, timeout=60)
    connection.connect()
    if running is not None:
        running.hang_up = lambda: connection.sock.shutdown(socket.SHUT_RDWR)
    try:
        connection.request("POST", parts.path, json.dumps(body), {**headers, "Content-Type": "application/json"})
        answered = connection.getresponse()
        return httpx.Response(answered.status, headers=answered.getheaders(), content=answered.read())
    finally:
        connection.close()


class NativeWhole(Face):
    name = "native"
    streams = False

    def follow(self, call: Call, answer: Answer, running: Running | None = None) -> None:
        response = _post(f"{self.stack.base}/api/v1/inference", _native_body(call), _headers(call), running)
        if response.status_code != 200:
            return _refused(answer, response)
        body = response.json()
        answer.text, answer.request_id, answer.finished = body["choices"][0]["text"], body["id"], True
        return None


class NativeStream(Face):
    name = "native SSE"
    resumes = True

    def follow(self, call: Call, answer: Answer, running: Running | None = None) -> None:
        base = f"{self.stack.base}/api/v1/inference"
        with httpx.Client(trust_env=False, timeout=60, headers=_headers(call)) as client:
            if call.resume:
                headers = {"Last-Event-ID": call.resume[1]}
                opened = client.stream("GET", f"{base}/{call.resume[0]}/stream", headers=headers)
            else:
                opened = client.stream("POST", f"{base}/stream", json=_native_body(call))
            with opened as response:
                if running is not None:
                    running.hang_up = response.close
                if response.status_code != 200:
                    return _refused(answer, response)
                for event in events(response):
                    self._take(answer, event.data, event.name, event.id)
        return None

    @staticmethod
    def _take(answer: Answer, data: str, name: str, event_id: str) -> None:
        if data == "[DONE]":
            answer.finished = True
        elif name == "error":
            answer.code, answer.raw = json.loads(data)["error"]["code"], data
        elif name == "interrupted":
            answer.code, answer.raw = "INSUFFICIENT_RESOURCES", data
            answer.last_event = json.loads(data)["lastEventId"]
        elif data:
            chunk = json.loads(data)
            answer.request_id, answer.last_event = chunk["id"], event_id
            answer.text += chunk["choices"][0]["text"]
            answer.begun = True


class NativeWebSocket(Face):
    name = "WebSocket"
    resumes = True
    log_face = "websocket"

    def follow(self, call: Call, answer: Answer, running: Running | None = None) -> None:
        try:
            with websocket.socket(self.stack, call.key) as ws:
                if running is not None:
                    running.hang_up = ws.socket.close
                if call.key is None:
                    websocket.send(ws, "start", request=_native_body(call))
                assert websocket.receive(ws)["type"] == "ready"
                if call.resume:
                    websocket.send(ws, "resume", ref="r", id=call.resume[0], lastEventId=call.resume[1])
                else:
                    more = {"idempotencyKey": call.idempotency_key} if call.idempotency_key else {}
                    websocket.send(ws, "start", ref="r", request=_native_body(call), **more)
                while not (answer.finished or answer.code):
                    self._take(answer, json.loads(ws.recv(timeout=60)))
        except ConnectionClosed as closed:
            if closed.rcvd is not None and not answer.code:
                answer.code, answer.raw = _CLOSE_CODES.get(closed.rcvd.code, ""), closed.rcvd.reason

    @staticmethod
    def _take(answer: Answer, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "accepted":
                answer.request_id = frame["id"]
            case "chunk":
                answer.text += frame["choices"][0]["text"]
                answer.last_event, answer.begun = frame["eventId"], True
            case "done":
                answer.finished = True
            case "interrupted":
                answer.code, answer.last_event = "INSUFFICIENT_RESOURCES", frame["lastEventId"]
            case "error":
                answer.code, answer.retry_after = frame["error"]["code"], frame.get("retryAfter")
                answer.raw = json.dumps(frame)


def _openai_body(call: Call, stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": call.prompt}]
    return {"model": call.adapter or call.model, "messages": messages, "max_tokens": call.tokens, "stream": stream}


class OpenAIWhole(Face):
    name = "OpenAI"
    streams = False

    def follow(self, call: Call, answer: Answer, running: Running | None = None) -> None:
        url = f"{self.stack.openai_base}/chat/completions"
        response = _post(url, _openai_body(call, stream=False), _headers(call, bearer=True), running)
        if response.status_code != 200:
            return _refused(answer, response)
        body = response.json()
        answer.request_id = body["id"].replace("chatcmpl-", "gen-")
        answer.text, answer.finished = body["choices"][0]["message"]["content"], True
        return None


class OpenAIStream(Face):
    name = "OpenAI stream"

    def follow(self, call: Call, answer: Answer, running: Running | None = None) -> None:
        url = f"{self.stack.openai_base}/chat/completions"
        with (
            httpx.Client(trust_env=False, timeout=60, headers=_headers(call, bearer=True)) as client,
            client.stream("POST", url, json=_openai_body(call, stream=True)) as response,
        ):
            if running is not None:
                running.hang_up = response.close
            if response.status_code != 200:
                return _refused(answer, response)
            for event in events(response):
                self._take(answer, event.data)
        return None

    @staticmethod
    def _take(answer: Answer, data: str) -> None:
        if data == "[DONE]":
            answer.finished = True
        elif data:
            chunk = json.loads(data)
            if "error" in chunk:
                answer.code, answer.raw = _openai_code(chunk["error"]), data
                return
            answer.request_id = chunk["id"].replace("chatcmpl-", "gen-")
            answer.text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            answer.begun = bool(answer.text)


class Grpc(Face):
    """``AiInference``, as deployed clients speak it: a stream of requests."""

    name = "gRPC AiInference"
    resumes = True
    log_face = "grpc"
    proto = WIRE

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{stack.grpc_port}")
        self._folder = tempfile.TemporaryDirectory(prefix="cy-llm-rpc-")
        self._client = RpcClient(Path(self._folder.name), self.proto, self._channel)

    def close(self) -> None:
        self._channel.close()
        self._folder.cleanup()

    def follow(self, call: Call, answer: Answer, running: Running | None = None) -> None:
        try:
            messages = self._start(call)
            if running is not None:
                running.hang_up = messages.cancel
            for message in messages:
                self._take(answer, message)
        except grpc.RpcError as error:
            _failed(answer, error)

    def _start(self, call: Call) -> Any:
        return self._client.call("AiInference", "StreamPredict", iter([self._request(call)]), metadata=_metadata(call))

    @staticmethod
    def _request(call: Call) -> dict[str, Any]:
        if call.resume:
            return {"streamId": call.resume[0], "resumeAfter": call.resume[1]}
        request = {"modelId": call.model, "prompt": call.prompt, "generation": {"maxNewTokens": call.tokens}}
        return {**request, "adapter": call.adapter} if call.adapter else request

    @staticmethod
    def _take(answer: Answer, message: Any) -> None:
        answer.text += message.chunk
        answer.begun = bool(answer.text)
        answer.finished = message.end_of_stream
        answer.request_id = getattr(message, "stream_id", "") or message.trace_id
        answer.last_event = getattr(message, "resume_token", "")


class GrpcSeed(Grpc):
    """``AIService``, as the interface document names it: one request a call."""

    name = "gRPC AIService"
    resumes = False
    proto = SEED

    def _start(self, call: Call) -> Any:
        return self._client.call("AIService", "StreamPredict", self._request(call), metadata=_metadata(call))


def _metadata(call: Call) -> list[tuple[str, str]]:
    metadata = [("x-api-key", call.key)] if call.key is not None else []
    return [*metadata, ("idempotency-key", call.idempotency_key)] if call.idempotency_key else metadata


def _failed(answer: Answer, error: grpc.RpcError) -> None:
    answer.raw = str(error)
    status = rpc_status.from_call(error)
    if status is None:
        return
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            answer.code = info.reason
        elif detail.Unpack(retry):
            answer.retry_after = retry.retry_delay.seconds


class TrainingHttp(Face):
    """Starts a training; the answer is finished when it is queued, or, where ``tokens`` is 0, when it has ended."""

    name = "training"

    def follow(self, call: Call, answer: Answer, running: Running | None = None) -> None:
        base = f"{self.stack.base}/api/v1/training"
        with httpx.Client(trust_env=False, timeout=60, headers=_headers(call)) as client:
            response = client.post(f"{base}/start", json=training_body(call))
            if response.status_code != 200:
                return _refused(answer, response)
            answer.request_id, answer.text = response.json()["jobId"], response.json()["jobId"]
            if call.tokens:
                answer.finished = True
                return None
            with client.stream("GET", f"{base}/{answer.request_id}/events") as followed:
                if running is not None:
                    running.hang_up = followed.close
                if followed.status_code != 200:
                    return _refused(answer, followed)
                for event in events(followed):
                    if event.name == "error":
                        answer.code = json.loads(event.data)["error"]["code"]
                    elif event.data == "[DONE]":
                        answer.finished = True
        return None


class TrainingGrpc(Grpc):
    name = "gRPC training"

    def _start(self, call: Call) -> Any:
        return self._client.call("AiTraining", "StartTraining", self._training(call), metadata=_metadata(call))

    @staticmethod
    def _training(call: Call) -> dict[str, Any]:
        body = training_body(call)
        params = {"numTrainEpochs": 1, "maxSeqLength": 512}
        request = {
            "baseModel": body["baseModel"],
            "outputDir": body["outputDir"],
            "dataset": {"path": body["datasetPath"]},
            "hyperparams": params,
        }
        return {**request, "lora": {"r": 4096}} if call.adapter else request

    def follow(self, call: Call, answer: Answer, running: Running | None = None) -> None:
        try:
            messages = self._start(call)
            if running is not None:
                running.hang_up = messages.cancel
            for message in messages:
                answer.request_id = answer.text = message.job_id
                answer.begun = True
                if call.tokens:
                    answer.finished = True
                    messages.cancel()
                    return
            answer.finished = True
        except grpc.RpcError as error:
            with suppress(AttributeError):
                if error.code() == grpc.StatusCode.CANCELLED:
                    return
            _failed(answer, error)


def training_body(call: Call) -> dict[str, Any]:
    """A training of the call's model; its prompt is the output folder."""
    body: dict[str, Any] = {
        "baseModel": call.model,
        "outputDir": call.prompt.replace(" ", "-"),
        "datasetPath": "train.jsonl",
        "hyperParams": {"epochs": 1, "maxSeqLength": 512},
    }
    return {**body, "resumeFrom": call.adapter} if call.adapter else body


INFERENCE = (NativeWhole, NativeStream, NativeWebSocket, OpenAIWhole, OpenAIStream, Grpc, GrpcSeed)
TRAINING = (TrainingHttp, TrainingGrpc)
