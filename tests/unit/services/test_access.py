"""Who may do what, and who sees what."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.access import Access
from services.errors import PermissionDenied, Unauthenticated
from settings import Settings
from store.principal import ANONYMOUS, Principal, Scope
from store.sql import db
from store.sql.api_keys import ApiKeyStore
from store.sql.authenticator import ApiKeyAuthenticator

PLAIN = Principal("k1", "one", frozenset({Scope.INFERENCE}), tenant="acme")
OPERATOR = Principal("k2", "two", frozenset({Scope.ADMIN}), tenant="acme")
GATEWAY = Principal("k3", "three", frozenset({Scope.OPENAI}))


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    db.migrate(url)
    engine = db.connect(url)
    yield db.sessions(engine)
    engine.dispose()


def access(sessions: sessionmaker[Session], **settings: str) -> Access:
    return Access(ApiKeyAuthenticator(Settings(**settings), sessions, cache_seconds=0))  # type: ignore[arg-type]


def test_open_until_the_first_key(sessions: sessionmaker[Session]) -> None:
    door = access(sessions)
    assert door.authenticate(None) is ANONYMOUS
    token = ApiKeyStore(sessions).add("first", [Scope.INFERENCE])
    with pytest.raises(Unauthenticated):
        door.authenticate(None)
    with pytest.raises(Unauthenticated):
        door.authenticate("cy-wrong")
    assert door.authenticate(token).name == "first"


def test_a_revoked_key_is_no_key(sessions: sessionmaker[Session]) -> None:
    door, store = access(sessions), ApiKeyStore(sessions)
    principal = door.authenticate(store.add("short", [Scope.INFERENCE]))
    door.require_active(principal)
    assert store.revoke("short")
    with pytest.raises(Unauthenticated):
        door.require_active(principal)


def test_a_key_of_the_environment_cannot_be_revoked(sessions: sessionmaker[Session]) -> None:
    door = access(sessions, api_key="k")
    door.require_active(door.authenticate("k"))


@pytest.mark.parametrize(
    ("principal", "allowed"),
    [
        (PLAIN, {Scope.INFERENCE, Scope.OPENAI}),
        (GATEWAY, {Scope.OPENAI}),
        (OPERATOR, {Scope.ADMIN}),
        (ANONYMOUS, set(Scope)),
    ],
)
def test_scopes(sessions: sessionmaker[Session], principal: Principal, allowed: set[Scope]) -> None:
    door = access(sessions)
    for scope in Scope:
        if scope in allowed:
            door.require_scope(principal, scope)
        else:
            with pytest.raises(PermissionDenied, match=f"'{scope.value}'"):
                door.require_scope(principal, scope)


def test_a_tenant_sees_its_own_an_operator_everything(sessions: sessionmaker[Session]) -> None:
    door = access(sessions)
    assert door.can_see(PLAIN, "acme")
    assert not door.can_see(PLAIN, "default")
    assert not door.can_see(GATEWAY, "acme")
    assert door.can_see(OPERATOR, "default")
    assert (door.visible_tenant(PLAIN), door.visible_tenant(OPERATOR)) == ("acme", None)


def test_work_of_a_key_that_is_gone_goes_on_no_more(sessions: sessionmaker[Session]) -> None:
    """Also where nothing is left of the key: what runs behind its call was begun with one that could be revoked."""
    ApiKeyStore(sessions).add("other", [Scope.INFERENCE])
    door = access(sessions)
    gone = door.owner("gone", "acme")
    assert gone.tenant == "acme"
    with pytest.raises(Unauthenticated):
        door.require_active(gone)
