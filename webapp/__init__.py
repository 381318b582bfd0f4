"""The front door. Only here is Flask known."""

from flask import Flask

from settings import Settings
from store.keys import Right
from webapp import access, handlers
from webapp.auth import protect, public
from webapp.openai import views as openai
from webapp.services import Services
from webapp.v1 import health, inference, models


def create_app(settings: Settings) -> Flask:
    """Return the application: every blueprint, and who may use it."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    Services.create(settings).install(app)
    access.register(app)
    handlers.register(app)

    app.register_blueprint(protect(inference.bp, Right.INFERENCE))
    app.register_blueprint(protect(models.bp, Right.INFERENCE))
    app.register_blueprint(protect(health.bp, Right.INFERENCE))
    app.register_blueprint(protect(openai.bp, Right.OPENAI))
    app.register_blueprint(public(openai.health_bp))
    return app
