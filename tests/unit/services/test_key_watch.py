"""Changes of keys that other processes tell of, and uses that are written."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy.orm import Session, sessionmaker

from services import key_watch
from services.key_watch import KeyWatch, announce
from settings import Settings
from store.principal import Scope
from store.sql import db
from store.sql.api_keys import ApiKeyStore, NewKey
from store.sql.authenticator import ApiKeyAuthenticator


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    db.migrate(url)
    engine = db.connect(url)
    yield db.sessions(engine)
    engine.dispose()


def test_a_change_that_is_told_is_seen_at_the_next_look(
    sessions: sessionmaker[Session], redis_client: redis.Redis
) -> None:
    store = ApiKeyStore(sessions)
    # Long enough that nothing lapses by itself.
    ring = ApiKeyAuthenticator(Settings(), sessions, cache_seconds=3600)
    watch = KeyWatch(redis_client, ring, store)
    row, token = store.make(NewKey("ci", frozenset(Scope)))
    watch.look()
    assert ring.authenticate(token) is not None
    store.revoke_by_id(row.id)
    watch.look()
    assert ring.authenticate(token) is not None
    assert announce(redis_client)
    watch.look()
    assert ring.authenticate(token) is None


def test_uses_are_written_now_and_then_and_at_the_end(
    sessions: sessionmaker[Session], redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ApiKeyStore(sessions)
    ring = ApiKeyAuthenticator(Settings(), sessions)
    watch = KeyWatch(redis_client, ring, store)
    row, token = store.make(NewKey("ci", frozenset(Scope)))
    ring.authenticate(token)
    watch.look()
    assert store.get(row.id).last_used_at is None
    monkeypatch.setattr(key_watch, "_WRITE_SECONDS", 0)
    watch.look()
    assert store.get(row.id).last_used_at is not None
    other, second = store.make(NewKey("other", frozenset(Scope)))
    ring.authenticate(second)
    watch.close()
    assert store.get(other.id).last_used_at is not None


def test_a_redis_that_is_away_tells_nobody() -> None:
    away = redis.Redis(port=1)
    assert not announce(away)
