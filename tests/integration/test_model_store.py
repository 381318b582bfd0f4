"""Changes of models in SQL, on SQLite and PostgreSQL: nothing lost, nothing that comes back, every writer in turn."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from engines.catalogue import merge
from engines.registry import parse_registry
from services.adapters import AdapterService
from services.errors import Conflict, NotFound
from services.model_changes import ModelChanges
from services.models import ModelCatalog
from settings import Settings
from store.principal import ANONYMOUS
from store.redis.presence import Fleet
from store.sql import db
from store.sql.adapters import AdapterStore
from store.sql.jobs import JobStore
from store.sql.models import ENTRY, OVERRIDE, ChangedMeanwhileError, ModelExistsError, ModelStore

FAKE = {"model_path": "none", "engine": "fake"}


@pytest.fixture(params=["sqlite", "postgresql"])
def sessions(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    url = f"sqlite:///{tmp_path / 'm.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    db.migrate(url)
    engine = db.connect(url)
    yield db.sessions(engine)
    engine.dispose()


class _Quiet:
    """A Redis and a presence that nobody listens to."""

    def set(self, *_: Any) -> None: ...
    def publish(self, *_: Any) -> None: ...
    def fleet(self, fresh: bool = False) -> Fleet:
        return Fleet(())


def changes(sessions: sessionmaker[Session], store: ModelStore, folder: Path) -> ModelChanges:
    quiet: Any = _Quiet()
    access: Any = None
    adapters = AdapterStore(sessions, folder)
    catalog = ModelCatalog(
        lambda: parse_registry({"m": FAKE}, folder),
        lambda file, state: merge(file, state.added, state.overrides, folder, folder),
        store,
        quiet,
        quiet,
        AdapterService(adapters, access),
    )
    settings = Settings(config_path=folder / "config.json")
    return ModelChanges(settings, catalog, store, quiet, quiet, adapters, JobStore(sessions))


class RacingStore(ModelStore):
    """Somebody else writes first, between the caller's look and its write."""

    def __init__(self, sessions: sessionmaker[Session], rivals: list[tuple[str, Any]]) -> None:
        super().__init__(sessions)
        self._rivals = rivals

    def put(self, model: str, *args: Any, **kwargs: Any) -> int:
        if self._rivals:
            action, values = self._rivals.pop()
            rival = ModelStore(self._sessions)
            if action == "remove":
                rival.remove(model, "remove", "rival")
            else:
                rival.put(model, OVERRIDE, values, values, "rival")
        return super().put(model, *args, **kwargs)


def test_a_change_that_came_between_is_kept(sessions: sessionmaker[Session], tmp_path: Path) -> None:
    store = RacingStore(sessions, [("put", {"max_pending": 5}), ("put", {"max_pending": 3})])
    changes(sessions, store, tmp_path).change(ANONYMOUS, "m", {"default_max_tokens": 7})
    assert store.state().overrides["m"] == {"max_pending": 5, "default_max_tokens": 7}
    # Who says what it looked at is told instead.
    racing = RacingStore(sessions, [("put", {"max_pending": 9})])
    with pytest.raises(Conflict):
        changes(sessions, racing, tmp_path).change(ANONYMOUS, "m", {"name": "x"}, store.state().revision_of("m"))
    assert store.state().overrides["m"] == {"max_pending": 9}


def test_a_removed_model_does_not_come_back(sessions: sessionmaker[Session], tmp_path: Path) -> None:
    ModelStore(sessions).add("extra", FAKE, "me")
    racing = RacingStore(sessions, [("remove", None)])
    with pytest.raises(NotFound):
        changes(sessions, racing, tmp_path).change(ANONYMOUS, "extra", {"name": "x"})
    assert racing.state().entries == ()


def test_an_override_of_a_model_that_left_the_file_can_be_dropped(
    sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    store = ModelStore(sessions)
    store.put("gone", OVERRIDE, {"name": "x"}, {"name": "x"}, "me")
    made = changes(sessions, store, tmp_path)
    assert made.reset(ANONYMOUS, "gone") == "gone"
    assert store.state().entries == ()


def test_the_store_itself(sessions: sessionmaker[Session]) -> None:
    store = ModelStore(sessions)
    assert store.state().revision == 0
    first = store.add("a", FAKE, "me")
    with pytest.raises(ModelExistsError):
        store.add("a", FAKE, "me")
    assert store.put("a", ENTRY, FAKE, {}, "me", first) > first
    with pytest.raises(ChangedMeanwhileError):
        store.put("a", ENTRY, FAKE, {}, "me", first)
    store.place("a", ["w1", "w2"], True, "me")
    store.place("a", ["w2"], False, "you")
    assert [(row.worker, row.loaded) for row in store.state().placements] == [("w1", True), ("w2", False)]
    store.remove("a", "remove", "me")
    state = store.state()
    assert state.entries == () and state.placements == () and state.revision == store.revision()
    assert [change.action for change in store.history("a", 10)] == ["remove", "unload", "load", "change", "add"]


def test_writers_at_once_are_numbered_as_they_are_seen(sessions: sessionmaker[Session]) -> None:
    store = ModelStore(sessions)
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(10):
                # What is visible after a write holds everything with a smaller number.
                revision = store.place("m", [f"w{number}"], bool(turn % 2), "me")
                seen = store.history("m", 1000)
                assert [change.id for change in seen if change.id <= revision] == list(range(revision, 0, -1))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.revision() == 40
