"""gRPC, with clients made from the interface document's tables and from the deployed wire."""

import filecmp
import json
import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from settings import ROOT
from store.principal import Scope
from store.redis import keys as redis_keys
from store.sql import db
from store.sql.api_keys import ApiKeyStore
from testing.fake_text import expected_text
from testing.rpc_client import SEED, WIRE, RpcClient
from testing.stack import KEY, Stack, free_port
from testing.waiting import until

MODELS = {
    "default": "fake",
    "models": {
        "fake": {"model_path": "none", "engine": "fake"},
        "slow": {"model_path": "none", "engine": "fake", "tokensPerSecond": 20},
        "paused": {"model_path": "none", "engine": "fake", "tokensPerSecond": 0.25},
        "tiny": {"model_path": "none", "engine": "fake", "maxModelLen": 64},
        "unloadable": {"model_path": "none", "engine": "fake"},
        "idle": {"model_path": str(ROOT / "models" / "demo"), "engine": "fake"},
    },
}
SERVED = "fake,slow,paused,tiny,unloadable"
TOKEN = "internal-token-of-the-tests"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("grpc")
    (folder / "data").mkdir()
    rows = [{"prompt": f"q{number}", "completion": "a"} for number in range(4)]
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = {
        "CY_LLM_DATA_ROOTS": str(folder / "data"),
        "CY_LLM_OUTPUTS_ROOT": str(folder / "out"),
        "CY_LLM_INTERNAL_TOKEN": TOKEN,
    }
    found = Stack(folder / "stack", MODELS, env=env)
    try:
        found.start_worker("w1", ["--models", SERVED])
        found.start_grpc()
        yield found
    finally:
        found.close()


@contextmanager
def channel_to(stack: Stack) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{stack.grpc_port}") as channel:
        yield channel


@pytest.fixture
def channel(stack: Stack) -> Iterator[grpc.Channel]:
    with channel_to(stack) as found:
        yield found


@pytest.fixture
def wire(tmp_path: Path, channel: grpc.Channel) -> RpcClient:
    return RpcClient(tmp_path / "wire", WIRE, channel, KEY)


@pytest.fixture
def seed(tmp_path: Path, channel: grpc.Channel) -> RpcClient:
    return RpcClient(tmp_path / "seed", SEED, channel, KEY)


def ask(prompt: str, tokens: int = 10, model: str = "fake", **fields: Any) -> dict[str, Any]:
    return {"model_id": model, "prompt": prompt, "generation": {"max_new_tokens": tokens}, **fields}


def text_of(messages: list[Any]) -> str:
    assert [message.index for message in messages] == list(range(len(messages)))
    assert [message.end_of_stream for message in messages] == [False] * (len(messages) - 1) + [True]
    return "".join(message.chunk for message in messages)


def test_the_document_s_client_gets_its_text(seed: RpcClient) -> None:
    request = ask("hello", metadata={"trace_id": "t-1"})
    messages = list(seed.call("AIService", "StreamPredict", request))
    assert text_of(messages) == expected_text("hello", 10)
    assert {message.trace_id for message in messages} == {"t-1"}


def test_deployed_clients_send_many_requests_over_one_call(wire: RpcClient) -> None:
    requests = [ask(f"p{number}", 5 + number, metadata={"trace_id": f"t{number}"}) for number in range(5)]
    found: dict[str, list[Any]] = {}
    for message in wire.call("AiInference", "StreamPredict", requests):
        found.setdefault(message.trace_id, []).append(message)
    assert {trace: text_of(messages) for trace, messages in found.items()} == {
        f"t{number}": expected_text(f"p{number}", 5 + number) for number in range(5)
    }


def test_times_and_counts_are_by_tokens(wire: RpcClient) -> None:
    messages = list(wire.call("AiInference", "StreamPredict", [ask("hello", 40, "slow")]))
    last = messages[-1]
    assert (last.finish_reason, last.prompt_tokens, last.completion_tokens) == ("length", 1, 40)
    assert messages[0].ttft_ms > 0
    assert {message.ttft_ms for message in messages} == {messages[0].ttft_ms}
    assert 10 < last.tokens_per_sec <= 25
    assert [message.completion_tokens for message in messages[:-1]] == sorted(
        message.completion_tokens for message in messages[:-1]
    )


def test_one_bad_request_of_many_ends_alone(wire: RpcClient) -> None:
    requests = [ask("good", 30, "slow"), {**ask("bad", metadata={"trace_id": "b"}), "priority": 12}, ask("x", 5)]
    messages = list(wire.call("AiInference", "StreamPredict", requests))
    [bad] = [message for message in messages if message.error.code]
    assert (bad.trace_id, bad.end_of_stream, bad.error.code) == ("b", True, "INVALID_REQUEST")
    assert bad.error.details[0].field == "priority"
    assert sum(message.end_of_stream for message in messages) == 3


def test_a_call_is_gone_on_with_by_id(wire: RpcClient) -> None:
    whole = list(wire.call("AiInference", "StreamPredict", [ask("resume me", 40, "slow")], timeout=30))
    stream_id = whole[0].stream_id
    again = {"stream_id": stream_id, "resume_after": whole[7].resume_token}
    rest = list(wire.call("AiInference", "StreamPredict", [again]))
    assert "".join(message.chunk for message in rest) == "".join(message.chunk for message in whole[8:])
    assert rest[-1].end_of_stream
    # From the beginning, too.
    assert text_of(list(wire.call("AiInference", "StreamPredict", [{"stream_id": stream_id}]))) == text_of(whole)


def test_a_cancelled_call_frees_the_engine(stack: Stack, wire: RpcClient) -> None:
    requests: queue.Queue[Any] = queue.Queue()
    requests.put(ask("cancel me", 4000, "slow"))
    call = wire.call("AiInference", "StreamPredict", iter(requests.get, None), timeout=60)
    stream_id = next(call).stream_id
    started = time.monotonic()
    call.cancel()

    def released() -> bool:
        [(_, fields)] = stack.client.xrevrange(redis_keys.log(stream_id), count=1)
        return bool(fields[b"k"] == b"r")

    until(released, 5, "the request is let go")
    assert time.monotonic() - started < 1.5
    requests.put(None)


def test_the_call_s_deadline_is_the_request_s(wire: RpcClient) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(wire.call("AiInference", "StreamPredict", [ask("x", 4000, "paused")], timeout=1.0))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def failure(call: Any) -> Any:
    """The error of a call, with its details by kind."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call) if hasattr(call, "__iter__") else call
    error: Any = caught.value
    error.found = {}
    status = rpc_status.from_call(error)
    if status is not None:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            for packed in status.details:
                found = kind()
                if packed.Unpack(found):
                    error.found[kind.__name__] = found
    return error


@pytest.mark.parametrize(
    ("request_", "code", "reason", "field"),
    [
        (ask("x", model="nobody"), "NOT_FOUND", "MODEL_NOT_FOUND", "model_id"),
        (ask("x", model="idle"), "UNAVAILABLE", "MODEL_NOT_READY", None),
        (ask("", model="fake"), "INVALID_ARGUMENT", "INVALID_REQUEST", "prompt"),
        ({**ask("x"), "priority": 11}, "INVALID_ARGUMENT", "INVALID_REQUEST", "priority"),
        (ask("x " * 100, model="tiny"), "INVALID_ARGUMENT", "INVALID_REQUEST", "prompt"),
        (ask("x", 1000, "tiny"), "INVALID_ARGUMENT", "INVALID_REQUEST", "generation.max_new_tokens"),
        ({"stream_id": "gen-nothing"}, "NOT_FOUND", "NOT_FOUND", "id"),
    ],
)
def test_errors_have_their_names(wire: RpcClient, request_: Any, code: str, reason: str, field: str | None) -> None:
    error = failure(wire.call("AiInference", "StreamPredict", [request_]))
    assert error.code().name == code, error
    assert error.found["ErrorInfo"].reason == reason
    if field is not None:
        [violation] = error.found["BadRequest"].field_violations
        assert violation.field == field
        assert violation.description
    if code == "UNAVAILABLE":
        assert error.found["RetryInfo"].retry_delay.seconds > 0


def test_limits_are_resource_exhausted(tmp_path: Path, stack: Stack) -> None:
    port = free_port()
    server = stack.start_grpc(CY_LLM_STREAMS_PER_KEY="1", CY_LLM_GRPC_PORT=str(port))
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            client = RpcClient(tmp_path, WIRE, channel, KEY)
            first = client.call("AiInference", "StreamPredict", [ask("x", 200, "slow")])
            next(first)
            error = failure(client.call("AiInference", "StreamPredict", [ask("x")]))
            assert (error.code().name, error.found["ErrorInfo"].reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
            first.cancel()
    finally:
        stack.stop(server)


def test_a_full_queue_is_resource_exhausted(tmp_path: Path, stack: Stack) -> None:
    port = free_port()
    server = stack.start_grpc(CY_LLM_MAX_QUEUE_SIZE="0", CY_LLM_GRPC_PORT=str(port))
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            error = failure(RpcClient(tmp_path, WIRE, channel, KEY).call("AiInference", "StreamPredict", [ask("x")]))
            assert error.code().name == "RESOURCE_EXHAUSTED"
            assert error.found["ErrorInfo"].reason == "INSUFFICIENT_RESOURCES"
            assert error.found["RetryInfo"].retry_delay.seconds == 5
    finally:
        stack.stop(server)


def test_tls_in_both_directions(tmp_path: Path, stack: Stack) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    found = authority.issue_cert("localhost")
    found.private_key_pem.write_to_path(tmp_path / "key.pem")
    found.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    port = free_port()
    server = stack.start_grpc(
        CY_LLM_GRPC_PORT=str(port),
        CY_LLM_GRPC_TLS_CERT=str(tmp_path / "cert.pem"),
        CY_LLM_GRPC_TLS_KEY=str(tmp_path / "key.pem"),
        CY_LLM_GRPC_TLS_CLIENT_CA=str(tmp_path / "ca.pem"),
    )

    def ping(issuer: trustme.CA | None) -> str:
        client = issuer.issue_cert("client") if issuer else None
        credentials = grpc.ssl_channel_credentials(
            authority.cert_pem.bytes(),
            client.private_key_pem.bytes() if client else None,
            client.cert_chain_pems[0].bytes() if client else None,
        )
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            caller = RpcClient(tmp_path / "client", WIRE, channel, KEY)
            answer = caller.call("AiInference", "Control", {"command": "ping"}, timeout=10)
            return str(answer.payload["status"])

    try:
        assert ping(authority) == "ok"
        for other in (None, stranger):
            with pytest.raises(grpc.RpcError) as caught:
                ping(other)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        stack.stop(server)


METHODS = [
    ("AiInference", "StreamPredict", [ask("x")]),
    ("AiInference", "Control", {"command": "ping"}),
    ("AiInference", "Health", {}),
    ("AiTraining", "StartTraining", {}),
    ("AiTraining", "GetTrainingStatus", {"job_id": "x"}),
    ("AiTraining", "CancelTraining", {"job_id": "x"}),
    ("AiTraining", "ListTrainingJobs", {}),
]


@pytest.mark.parametrize(("service", "method", "request_"), METHODS)
@pytest.mark.parametrize("metadata", [[], [("authorization", "Bearer wrong")], [("x-api-key", "wrong")]])
def test_nobody_gets_in_without_a_key(wire: RpcClient, service: str, method: str, request_: Any, metadata: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        answer = wire.call(service, method, request_, metadata=metadata)
        list(answer)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_keys_and_the_internal_token_are_let_in_as_far_as_their_rights(stack: Stack, wire: RpcClient) -> None:
    for metadata in ([("authorization", f"Bearer {TOKEN}")], [("x-api-key", KEY)]):
        assert wire.call("AiInference", "Control", {"command": "ping"}, metadata=metadata).payload["status"] == "ok"
    engine = db.connect(stack.database_url)
    key = ApiKeyStore(db.sessions(engine)).add("reader", [Scope.INFERENCE])
    engine.dispose()
    reader = [("x-api-key", key)]
    assert list(wire.call("AiInference", "StreamPredict", [ask("x")], metadata=reader))
    for service, method, request in [*METHODS[3:], ("AiInference", "Control", {"command": "reload_registry"})]:
        with pytest.raises(grpc.RpcError) as caught:
            list(wire.call(service, method, request, metadata=reader))
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED, (service, method)


def test_health_and_reflection(channel: grpc.Channel, wire: RpcClient) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", "cy.llm.AiInference", "cy.llm.TrainingService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    found = wire.call("AiInference", "Health", {})
    assert found.healthy
    assert found.metrics["workers_healthy"] == "1"
    signed = grpc.intercept_channel(channel, _Signer())
    services = ProtoReflectionDescriptorDatabase(signed).get_services()
    assert {"cy.llm.AiInference", "cy.llm.AIService", "cy.llm.AiTraining", "cy.llm.TrainingService"} <= set(services)


class _Signer(grpc.StreamStreamClientInterceptor):  # type: ignore[misc]
    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(details._replace(metadata=[("x-api-key", KEY)]), requests)


def test_control(stack: Stack, wire: RpcClient) -> None:
    def models() -> dict[str, str]:
        return dict(wire.call("AiInference", "Control", {"command": "list_models"}).payload)

    assert models() == {**dict.fromkeys(SERVED.split(","), "ready"), "idle": "unavailable"}
    unknown = wire.call("AiInference", "Control", {"command": "ping", "trace_id": "t"})
    assert (unknown.trace_id, unknown.command) == ("t", "ping")
    with pytest.raises(grpc.RpcError) as caught:
        wire.call("AiInference", "Control", {"command": "dance"})
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    answer = wire.call("AiInference", "Control", {"command": "unload_model", "payload": {"model": "unloadable"}})
    assert answer.payload["workers"] == "w1@test"
    until(lambda: models()["unloadable"] == "unavailable", 10, "the model is unloaded")
    assert list(wire.call("AiInference", "StreamPredict", [ask("still there")]))
    document = json.loads(stack.config.read_text())
    document["models"]["fresh"] = {"model_path": "none", "engine": "fake"}
    stack.config.write_text(json.dumps(document))
    assert "fresh" in wire.call("AiInference", "Control", {"command": "reload_registry"}).payload["models"]
    assert models()["fresh"] == "unavailable"
    # The training services see it too: what is wrong with this training is not its model.
    training = {"base_model": "fresh", "output_dir": "x", "dataset": {"path": "none.jsonl"}}
    with pytest.raises(grpc.RpcError) as caught:
        list(wire.call("AiTraining", "StartTraining", training))
    assert "fresh" not in caught.value.details()
    assert "none.jsonl" in caught.value.details()


def test_trainings(stack: Stack, wire: RpcClient, seed: RpcClient) -> None:
    request = {
        "base_model": "idle",
        "output_dir": "mine",
        "character_name": "captain",
        "dataset": {"path": "train.jsonl", "format": "prompt_completion"},
        "lora": {"r": 8, "target_modules": ["q_proj"]},
        "hyperparams": {"num_train_epochs": 2, "learning_rate": 0.001},
    }
    call = wire.call("AiTraining", "StartTraining", request)
    first = next(call)
    assert (first.status, first.total_epochs) == (1, 2)
    # Leaving the call does not stop the job.
    call.cancel()
    status = wire.call("AiTraining", "GetTrainingStatus", {"job_id": first.job_id})
    assert (status.status, status.latest_progress.job_id) == (1, first.job_id)
    document = {"base_model": "idle", "output_dir": "other", "dataset_path": "train.jsonl"}
    second = next(seed.call("TrainingService", "StartTraining", {**document, "hyper_params": {"lora_rank": 4}}))
    listed = seed.call("TrainingService", "ListTrainingJobs", {"limit": 1})
    assert ([job.job_id for job in listed.jobs], listed.total) == ([second.job_id], 2)
    listed = seed.call("TrainingService", "ListTrainingJobs", {"limit": 1, "offset": 1})
    assert [job.job_id for job in listed.jobs] == [first.job_id]
    assert seed.call("TrainingService", "CancelTraining", {"job_id": second.job_id}).success
    cancelled = wire.call("AiTraining", "ListTrainingJobs", {"status_filter": ["TRAINING_STATUS_CANCELLED"]})
    assert [job.job_id for job in cancelled.jobs] == [second.job_id]
    assert [job.character_name for job in wire.call("AiTraining", "ListTrainingJobs", {}).jobs] == ["other", "captain"]
    error = failure(wire.call("AiTraining", "StartTraining", {**request, "dataset": {"path": "../x"}}))
    assert (error.code().name, error.found["BadRequest"].field_violations[0].field) == (
        "INVALID_ARGUMENT",
        "dataset_path",
    )
    with pytest.raises(grpc.RpcError) as caught:
        wire.call("AiTraining", "GetTrainingStatus", {"job_id": "job-nothing"})
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    wire.call("AiTraining", "CancelTraining", {"job_id": first.job_id})


def test_two_hundred_streams_at_once(tmp_path: Path, stack: Stack) -> None:
    with channel_to(stack) as channel:
        client = RpcClient(tmp_path, WIRE, channel, KEY)
        calls = [client.call("AiInference", "StreamPredict", [ask(f"p{n}", 20, "slow")]) for n in range(200)]
        texts: list[str] = [""] * 200

        def read(number: int) -> None:
            texts[number] = text_of(list(calls[number]))

        threads = [threading.Thread(target=read, args=(number,)) for number in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert texts == [expected_text(f"p{number}", 20) for number in range(200)]


def test_a_call_survives_its_worker(tmp_path: Path, stack: Stack) -> None:
    second = stack.start_worker("w2", ["--models", "slow"])
    with channel_to(stack) as channel:
        client = RpcClient(tmp_path, WIRE, channel, KEY)
        call = client.call("AiInference", "StreamPredict", [ask("survive", 80, "slow", worker_hint="w2@test")])
        messages = [next(call) for _ in range(3)]
        second.popen.kill()
        messages += list(call)
    assert text_of(messages) == expected_text("survive", 80)


def test_the_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    subprocess.run([str(ROOT / "webapp" / "rpc" / "generate"), str(tmp_path)], check=True, timeout=60)
    for name in ("ai_service_pb2.py", "ai_service_pb2.pyi", "ai_service_pb2_grpc.py"):
        fresh = tmp_path / "webapp" / "rpc" / name
        assert filecmp.cmp(fresh, ROOT / "webapp" / "rpc" / name, shallow=False), f"{name}: run webapp/rpc/generate"
