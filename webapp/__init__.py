"""The faces. They parse, call one service, and render; no policy, no Redis, no SQL."""

from flask import Flask

from services.container import Services
from settings import Settings
from store.principal import Scope
from webapp.http import access_log, body, current, paths, security_headers
from webapp.http.authentication import BlueprintGuard
from webapp.http.cors import Cors
from webapp.http.error_handlers import ErrorHandlers, Face
from webapp.openai import (
    answer_headers,
    anthropic_error,
    files,
    fine_tuning,
    messages,
    responses,
    streams,
    tokens,
    uploads,
)
from webapp.openai import error_body as openai_error
from webapp.openai import views as openai
from webapp.openai.batches import views as batches
from webapp.v1 import adapters, health, inference, keys, metrics, models, probes, requests, training, usage, websocket
from webapp.v1 import error_body as native_error


def create_app(settings: Settings) -> Flask:
    """Return the HTTP application: every blueprint, and the scope that it needs."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    current.install(app, Services.create(settings))
    access_log.register(app)
    paths.install(app)
    security_headers.install(app)
    answer_headers.install(app)
    ErrorHandlers(
        app,
        Face("/api/v1", settings.port, native_error.error_body),
        Face("/v1", settings.openai_port, openai_error.error_body),
        Face("/v1/messages", settings.openai_port, anthropic_error.anthropic_error_body),
    )
    Cors(app, settings.cors_origins)

    guard = BlueprintGuard(app)
    guard.register(inference.bp, Scope.INFERENCE)
    guard.register(requests.bp, Scope.INFERENCE)
    guard.register(models.bp, Scope.INFERENCE)
    guard.register(models.admin_bp, Scope.ADMIN)
    guard.register(health.bp, Scope.INFERENCE)
    guard.register(adapters.bp, Scope.INFERENCE)
    guard.register(adapters.admin_bp, Scope.TRAINING)
    guard.register(training.bp, Scope.TRAINING)
    guard.register(openai.bp, Scope.OPENAI)
    guard.register(openai.root, Scope.OPENAI)
    guard.register(messages.bp, Scope.OPENAI)
    guard.register(responses.bp, Scope.OPENAI)
    guard.register(streams.bp, Scope.OPENAI)
    guard.register(tokens.bp, Scope.OPENAI)
    guard.register(files.bp, Scope.OPENAI)
    guard.register(uploads.bp, Scope.OPENAI)
    guard.register(batches.bp, Scope.OPENAI)
    guard.register(fine_tuning.bp, Scope.TRAINING)
    guard.register(openai.admin_bp, Scope.TRAINING)
    guard.register(usage.bp, Scope.INFERENCE)
    guard.register(keys.admin_bp, Scope.ADMIN)
    # Its view asks whose key it is, whatever that key may do.
    guard.register_public(keys.own_bp)
    guard.register_public(probes.bp)
    # Its views take the scrape token too.
    guard.register_public(metrics.bp)
    # A browser cannot send a key in a header: the socket asks for it in its first frame.
    app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 25, "max_message_size": settings.max_body_bytes}
    guard.register_socket(websocket.sock)
    # Behind the guard: whoever has no key sends no body.
    body.install(app)
    return app
