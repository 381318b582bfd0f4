"""The gRPC server: services under both names, standard health check, reflection, TLS."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from configuration.listen_address import join
from services.bind_address import bind_host
from services.container import Services
from services.metrics_targets import Announced, announce
from settings import Settings
from webapp.rpc import ai_service_pb2 as pb
from webapp.rpc import ai_service_pb2_grpc as services_pb
from webapp.rpc.inference import InferenceServicer
from webapp.rpc.interceptor import Interceptor
from webapp.rpc.training import TrainingServicer

log = logging.getLogger(__name__)

#: Times in milliseconds. Idle proxies drop connections after a minute or so.
_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
)


class CannotListen(Exception):
    """The server cannot be started; the message says what to change."""


class Server:
    """One gRPC process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._services = Services.create(settings)
        self._stopping = False
        self._services.lifecycle.is_stopping = lambda: self._stopping
        # A call holds a thread; the health check must find one too.
        pool = ThreadPoolExecutor(settings.grpc_threads + 8, thread_name_prefix="grpc")
        interceptor = Interceptor(self._services.access)
        self._server = grpc.server(pool, interceptors=[interceptor], options=_OPTIONS)
        self._health = health.HealthServicer()
        self._register()
        self.address = self._bind()

    def start(self) -> None:
        self._server.start()
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        log.info("gRPC is served", extra={"address": self.address})

    def announce_metrics(self, address: str) -> Announced:
        """Tell Prometheus' list where this process shows its metrics, until the result is closed."""
        return announce(self._services.client, "grpc", self.address, address)

    def stop(self, grace: float) -> None:
        """Take no new calls; those that run end in a state to resume from, or are cut off after ``grace`` seconds."""
        self._health.enter_graceful_shutdown()
        self._stopping = True
        self._server.stop(grace).wait()
        self._services.close()

    def _register(self) -> None:
        inference, training = InferenceServicer(self._services), TrainingServicer(self._services.training)
        services_pb.add_AiInferenceServicer_to_server(inference, self._server)
        services_pb.add_AIServiceServicer_to_server(inference, self._server)
        services_pb.add_AiTrainingServicer_to_server(training, self._server)
        services_pb.add_TrainingServiceServicer_to_server(training, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [service.full_name for service in pb.DESCRIPTOR.services_by_name.values()]
        for name in names:
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)

    def _bind(self) -> str:
        settings = self._settings
        address = join(bind_host(settings), settings.grpc_port)
        try:
            if settings.grpc_tls_cert is None and settings.grpc_tls_key is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, _credentials(settings))
        except RuntimeError as error:
            raise CannotListen(
                f"{address} cannot be listened on; is it in use? CY_LLM_GRPC_PORT names another"
            ) from error
        return address


def _credentials(settings: Settings) -> grpc.ServerCredentials:
    if settings.grpc_tls_cert is None or settings.grpc_tls_key is None:
        raise CannotListen("CY_LLM_GRPC_TLS_CERT and CY_LLM_GRPC_TLS_KEY must be set together")
    pair = (_read(settings.grpc_tls_key), _read(settings.grpc_tls_cert))
    if settings.grpc_tls_client_ca is None:
        return grpc.ssl_server_credentials([pair])
    authority = _read(settings.grpc_tls_client_ca)
    return grpc.ssl_server_credentials([pair], root_certificates=authority, require_client_auth=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CannotListen(f"{path.name} cannot be read: {error.strerror}") from error
