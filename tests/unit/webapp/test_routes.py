"""Every route asks for a right, but for those named here."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from flask import Flask

from launcher.redis_server import RedisServer
from settings import ROOT, Settings
from store.sql import db
from webapp import create_app
from webapp.http.current import services_of

#: The WebSocket authenticates in its view (``tests/integration/test_socket.py``).
PUBLIC = {"/", "/health", "/ready", "/api/v1/inference/ws"}


@pytest.fixture
def app(redis_server: RedisServer, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Flask]:
    url = f"sqlite:///{tmp_path / 'app.db'}"
    db.migrate(url)
    application = create_app(
        Settings(redis_url=redis_server.url, database_url=url, api_key="right", config_path=ROOT / "config.json")
    )
    yield application
    services_of(application).close()


def test_every_route_refuses_a_stranger(app: Flask) -> None:
    client = app.test_client()
    checked = 0
    for rule in app.url_map.iter_rules():
        if rule.rule in PUBLIC:
            continue
        path = rule.rule
        for argument in rule.arguments:
            path = path.replace(f"<{argument}>", "x").replace(f"<path:{argument}>", "x")
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            response = client.open(path, method=method, json={})
            assert response.status_code == 401, f"{method} {path} lets a stranger in"
            checked += 1
    assert checked >= 8


def test_a_view_outside_every_blueprint_is_closed(app: Flask) -> None:
    app.add_url_rule("/stray", view_func=lambda: "secret")
    assert app.test_client().get("/stray").status_code == 401


def test_public_routes_are_just_these(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/").status_code == 200
    assert client.get("/health").status_code == 200
    # No worker serves.
    assert client.get("/ready").status_code == 503
