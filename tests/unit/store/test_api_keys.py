"""Keys of the environment and the database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from settings import Settings
from store.sql import db
from store.sql.api_keys import ApiKeyAuthenticator, ApiKeyStore, KeyNameTakenError, Scope


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    db.migrate(url)
    opened = db.connect(url)
    yield opened
    opened.dispose()


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    return db.sessions(engine)


def test_keys_of_the_environment_have_their_rights(sessions: sessionmaker[Session]) -> None:
    ring = ApiKeyAuthenticator(Settings(api_key="all", gateway_api_token="gate"), sessions)
    everything, gateway = ring.authenticate("all"), ring.authenticate("gate")
    assert everything is not None
    assert all(everything.has_scope(scope) for scope in Scope)
    assert gateway is not None
    assert [scope for scope in Scope if gateway.has_scope(scope)] == [Scope.OPENAI]
    assert ring.authenticate("wrong") is None
    assert ring.authenticate("") is None


def test_a_database_key_works_until_revoked(sessions: sessionmaker[Session]) -> None:
    ring, admin = ApiKeyAuthenticator(Settings(), sessions, cache_seconds=0.0), ApiKeyStore(sessions)
    assert not ring.configured()
    token = admin.add("ci", [Scope.INFERENCE])
    assert ring.configured()
    principal = ring.authenticate(token)
    assert principal is not None
    assert principal.name == "ci"
    assert not principal.has_scope(Scope.TRAINING)
    assert ring.is_active(principal)
    assert admin.revoke("ci")
    assert not admin.revoke("ci")
    assert ring.authenticate(token) is None
    assert not ring.is_active(principal)


def test_the_system_stays_closed_when_its_last_key_is_revoked(sessions: sessionmaker[Session]) -> None:
    ring, admin = ApiKeyAuthenticator(Settings(), sessions), ApiKeyStore(sessions)
    admin.add("only", [Scope.ADMIN])
    admin.revoke("only")
    assert ring.configured()


def test_only_the_digest_is_kept(engine: Engine, sessions: sessionmaker[Session]) -> None:
    token = ApiKeyStore(sessions).add("ci", [Scope.ADMIN])
    with engine.connect() as connection:
        row = connection.execute(text("select * from api_keys")).one()
    assert token not in str(row)
    assert token.removeprefix("cy-") not in str(row)


def test_names_are_unique(sessions: sessionmaker[Session]) -> None:
    admin = ApiKeyStore(sessions)
    admin.add("ci", [])
    with pytest.raises(KeyNameTakenError, match="'ci'"):
        admin.add("ci", [])


def test_a_flood_of_wrong_tokens_does_not_grow_memory(sessions: sessionmaker[Session]) -> None:
    ring = ApiKeyAuthenticator(Settings(api_key="x"), sessions, cache_size=10)
    for number in range(50):
        assert ring.authenticate(f"wrong-{number}") is None
    assert ring.cached == 10


def test_keys_have_tenants(sessions: sessionmaker[Session]) -> None:
    ring, admin = ApiKeyAuthenticator(Settings(api_key="env"), sessions), ApiKeyStore(sessions)
    tokens = {tenant: admin.add(f"key of {tenant}", [Scope.INFERENCE], tenant) for tenant in ("acme", "default")}
    for tenant, token in [*tokens.items(), ("default", "env")]:
        principal = ring.authenticate(token)
        assert principal is not None
        assert principal.tenant == tenant
