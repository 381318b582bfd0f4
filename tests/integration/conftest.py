"""Fixtures of the tests that need real services."""

import os
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from sqlalchemy.orm import Session, sessionmaker

from store.principal import Scope
from store.sql import db
from store.sql.api_keys import ApiKeyStore
from testing.stack import Stack


@pytest.fixture(params=["sqlite", "postgresql"])
def sessions(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    """An empty database of each kind."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    db.migrate(url)
    engine = db.connect(url)
    yield db.sessions(engine)
    engine.dispose()


@pytest.fixture
def sdk(fake_stack: Stack) -> Iterator[openai.OpenAI]:
    with fake_stack.openai() as client:
        yield client


@pytest.fixture
def stranger(fake_stack: Stack) -> Iterator[openai.OpenAI]:
    """A client of another tenant."""
    with db.connect(fake_stack.database_url).connect() as connection:
        keys = ApiKeyStore(db.sessions(connection.engine))
        key = keys.add(os.urandom(4).hex(), [Scope.OPENAI, Scope.TRAINING], tenant="elsewhere")
    with fake_stack.openai(key) as client:
        yield client


@pytest.fixture
def empty(fake_stack: Stack, sdk: openai.OpenAI) -> None:
    for file in sdk.files.list():
        sdk.files.delete(file.id)
