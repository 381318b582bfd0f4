"""The front door. Only here is Flask known."""

from flask import Flask

from settings import Settings
from store.keys import Right
from webapp import access, handlers
from webapp.auth import Guard
from webapp.openai import views as openai
from webapp.services import Services
from webapp.v1 import adapters, health, inference, models, requests, socket, training


def create_app(settings: Settings) -> Flask:
    """Return the application: every blueprint, and who may use it."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    Services.create(settings).install(app)
    access.register(app)
    handlers.register(app)

    guard = Guard(app)
    guard.register(inference.bp, Right.INFERENCE)
    guard.register(requests.bp, Right.INFERENCE)
    guard.register(models.bp, Right.INFERENCE)
    guard.register(health.bp, Right.INFERENCE)
    guard.register(adapters.bp, Right.INFERENCE)
    guard.register(adapters.admin_bp, Right.TRAINING)
    guard.register(training.bp, Right.TRAINING)
    guard.register(openai.bp, Right.OPENAI)
    guard.register_public(openai.health_bp)
    # A browser cannot send a key in a header: the socket asks for it in its first frame.
    app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 25, "max_message_size": settings.max_body_bytes}
    guard.register_socket(socket.sock)
    return app
