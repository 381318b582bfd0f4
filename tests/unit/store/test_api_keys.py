"""Keys of the environment and the database."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from settings import Settings
from store.principal import Bounds, Principal, Scope
from store.sql import db
from store.sql.api_keys import ApiKeyStore, KeyNameTakenError, KeyRevokedError, NewKey
from store.sql.authenticator import ApiKeyAuthenticator
from store.sql.tables import now
from store.sql.tenants import TenantStore


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


def keyring(sessions: sessionmaker[Session]) -> ApiKeyAuthenticator:
    return ApiKeyAuthenticator(Settings(), sessions, cache_seconds=0.0)


def named(ring: ApiKeyAuthenticator, token: str) -> Principal:
    principal = ring.authenticate(token)
    assert principal is not None
    return principal


def test_a_keys_name_is_its_tenants_own(sessions: sessionmaker[Session]) -> None:
    store, ring = ApiKeyStore(sessions), keyring(sessions)
    tokens = {tenant: store.add("ci", [], tenant) for tenant in ("a", "b")}
    assert {tenant: named(ring, token).tenant for tenant, token in tokens.items()} == {"a": "a", "b": "b"}
    with pytest.raises(KeyNameTakenError):
        store.add("ci", [], "a")


def test_what_a_key_may_comes_with_it_and_changes_while_it_is_used(sessions: sessionmaker[Session]) -> None:
    store, ring = ApiKeyStore(sessions), keyring(sessions)
    row, token = store.make(
        NewKey("ci", frozenset({Scope.INFERENCE}), "acme", ("demo", "loud"), requests_per_minute=5, streams=2)
    )
    principal = named(ring, token)
    assert (principal.models, principal.bounds) == (frozenset({"demo", "loud"}), Bounds(5, 2))
    store.change(row.id, {"models": None, "requests_per_minute": None, "scopes": [Scope.TRAINING]})
    TenantStore(sessions).change("acme", {"streams": 7})
    found = ring.current(principal)
    assert found is not None
    assert (found.models, found.bounds, found.scopes) == (None, Bounds(None, 2), frozenset({Scope.TRAINING}))
    assert found.tenant_bounds == Bounds(None, 7)


def test_a_key_ends_when_it_was_to_end(sessions: sessionmaker[Session]) -> None:
    store = ApiKeyStore(sessions)
    # Its end is seen although the answer of the database is still believed.
    ring = ApiKeyAuthenticator(Settings(), sessions, cache_seconds=60)
    row, token = store.make(NewKey("short", frozenset(Scope), expires_at=now() + timedelta(hours=1)))
    principal = named(ring, token)
    assert ring.is_active(principal)
    store.change(row.id, {"expires_at": now() - timedelta(seconds=1)})
    fresh = keyring(sessions)
    assert fresh.authenticate(token) is None
    assert not fresh.is_active(principal)


def test_the_end_of_a_remembered_key_needs_no_database(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = ApiKeyAuthenticator(Settings(), sessions, cache_seconds=60)
    ends = now() + timedelta(hours=1)
    _, token = ApiKeyStore(sessions).make(NewKey("short", frozenset(Scope), expires_at=ends))
    principal = named(ring, token)
    assert ring.is_active(principal)
    monkeypatch.setattr("store.principal.time.time", lambda: ends.timestamp() + 1)
    assert ring.authenticate(token) is None
    assert not ring.is_active(principal)


def test_a_rotated_key_counts_twice_for_a_while(sessions: sessionmaker[Session]) -> None:
    store, ring = ApiKeyStore(sessions), keyring(sessions)
    row, old = store.make(NewKey("ci", frozenset(Scope)))
    rotated, new = store.rotate(row.id, timedelta(hours=1))
    assert new.startswith(rotated.prefix)
    assert named(ring, old).id == named(ring, new).id == row.id
    # The one before the last counts no more.
    _, newest = store.rotate(row.id, timedelta(hours=1))
    assert ring.authenticate(old) is None
    assert named(ring, new).id == named(ring, newest).id
    store.change(row.id, {"previous_until": now() - timedelta(seconds=1)})
    assert ring.authenticate(new) is None
    _, last = store.rotate(row.id, timedelta())
    assert ring.authenticate(newest) is None
    assert named(ring, last).id == row.id
    store.revoke_by_id(row.id)
    assert ring.authenticate(last) is None
    with pytest.raises(KeyRevokedError):
        store.rotate(row.id, timedelta())
    with pytest.raises(KeyRevokedError):
        store.change(row.id, {"name": "again"})


def test_a_blocked_tenants_keys_are_none(sessions: sessionmaker[Session]) -> None:
    store, tenants, ring = ApiKeyStore(sessions), TenantStore(sessions), keyring(sessions)
    token, other = store.add("a", [], "acme"), store.add("b", [], "elsewhere")
    principal = named(ring, token)
    tenants.change("acme", {}, blocked=True)
    assert ring.authenticate(token) is None
    assert not ring.is_active(principal)
    assert ring.authenticate(other) is not None
    tenants.change("acme", {}, blocked=False)
    assert named(ring, token).id == principal.id


def test_uses_are_noted_once_a_minute(sessions: sessionmaker[Session]) -> None:
    store, ring = ApiKeyStore(sessions), keyring(sessions)
    row, token = store.make(NewKey("ci", frozenset(Scope)))
    assert store.get(row.id).last_used_at is None
    named(ring, token)
    store.note_use(ring.take_used())
    first = store.get(row.id).last_used_at
    assert first is not None
    assert ring.take_used() == set()
    store.note_use({row.id, "unknown"})
    assert store.get(row.id).last_used_at == first
    store.change(row.id, {"last_used_at": first - timedelta(minutes=2)})
    store.note_use({row.id})
    assert (store.get(row.id).last_used_at or first) >= first


def test_the_beginning_of_a_key_is_kept_and_no_more(engine: Engine, sessions: sessionmaker[Session]) -> None:
    row, token = ApiKeyStore(sessions).make(NewKey("ci", frozenset(Scope)))
    assert token.startswith(row.prefix)
    assert len(row.prefix) == 9
    with engine.connect() as connection:
        assert token not in str(connection.execute(text("select * from api_keys")).one())


def test_what_is_remembered_is_forgotten_when_keys_were_changed(sessions: sessionmaker[Session]) -> None:
    store = ApiKeyStore(sessions)
    ring = ApiKeyAuthenticator(Settings(), sessions, cache_seconds=60)
    row, token = store.make(NewKey("ci", frozenset(Scope)))
    principal = named(ring, token)
    assert ring.is_active(principal)
    store.revoke_by_id(row.id)
    assert ring.authenticate(token) == principal
    ring.forget()
    assert ring.authenticate(token) is None
    assert not ring.is_active(principal)
