"""A stage: the whole system on the fake engine, a key for each face, and what is looked at after each call."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from store.principal import ALL_SCOPES, Scope
from store.redis import keys as redis_keys
from store.sql import db
from store.sql.api_keys import ApiKeyStore, NewKey
from store.sql.key_tables import ApiKey
from store.sql.usage import UsageStore
from store.usage_bill import Bill
from testing.faces import Face
from testing.stack import Process, Stack
from testing.waiting import until
from tests.situations.table import FACES, FaceType

#: Models of the fake engine; ``slow`` makes 20 tokens a second.
MODELS: dict[str, Any] = {
    "default": "fake",
    "models": {
        "fake": {"model_path": "none", "engine": "fake", "enableLora": True},
        "slow": {"model_path": "none", "engine": "fake", "tokensPerSecond": 20},
        "one": {"model_path": "none", "engine": "fake", "tokensPerSecond": 20, "maxPending": 1},
        "idle": {"model_path": "none", "engine": "fake"},
        "coming": {"model_path": "none", "engine": "fake"},
    },
}
ROWS = [{"prompt": f"question {number}", "completion": "an answer"} for number in range(10)]


class Stage:
    """One running system."""

    def __init__(self, folder: Path, **env: str) -> None:
        for name in ("data", "outputs", "adapters"):
            (folder / name).mkdir(parents=True)
        (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        roots = {
            "CY_LLM_DATA_ROOTS": str(folder / "data"),
            "CY_LLM_OUTPUTS_ROOT": str(folder / "outputs"),
            "CY_LLM_ADAPTERS_ROOT": str(folder / "adapters"),
            "CY_LLM_KEEPALIVE_SECONDS": "0.5",
        }
        self.stack = Stack(folder / "stack", MODELS, env={**roots, **env})
        self.processes: dict[str, Process] = {}
        self._faces: dict[FaceType, Face] = {}

    def start(self, **env: str) -> None:
        """Start both front doors."""
        self.processes = {"web": self.stack.start_web(**env), "grpc": self.stack.start_grpc(**env)}

    def face(self, kind: FaceType) -> Face:
        if kind not in self._faces:
            self._faces[kind] = kind(self.stack)
        return self._faces[kind]

    def add_key(self, name: str, scopes: frozenset[Scope] = ALL_SCOPES, **wanted: Any) -> str:
        return self.new_key(NewKey(name, scopes, **wanted))[1]

    def new_key(self, wanted: NewKey) -> tuple[ApiKey, str]:
        with self.keys() as keys:
            return keys.make(wanted)

    def book(self, bill: Bill) -> None:
        """Book what a request used, as if it had run."""
        engine = db.connect(self.stack.environment["DATABASE_URL"])
        try:
            UsageStore(db.sessions(engine)).book([bill])
        finally:
            engine.dispose()

    @contextmanager
    def keys(self) -> Iterator[ApiKeyStore]:
        engine = db.connect(self.stack.environment["DATABASE_URL"])
        try:
            yield ApiKeyStore(db.sessions(engine))
        finally:
            engine.dispose()

    def lines(self, face: Face) -> list[dict[str, Any]]:
        """The lines of answers that a face's process has written."""
        process = self.processes["grpc" if face.log_face == "grpc" else "web"]
        return [x for x in process.lines() if x.get("message") == "Answered" and x.get("face") == face.log_face]

    def leases(self) -> int:
        """Streams that any key holds."""
        found = self.stack.client.keys(redis_keys.streams("*"))
        return sum(self.stack.client.zcard(key) for key in found)

    @contextmanager
    def one_line(self, face: Face, code: str, key: str | None = None) -> Iterator[None]:
        """What is done in the block leaves a line with the code (and the key's name), and no lease."""

        def count() -> int:
            return sum(
                line.get("code", "") == code and (key is None or line.get("key") == key) for line in self.lines(face)
            )

        before = count()
        yield
        until(lambda: count() > before, 10, f"{face.name} logs its answer with code {code!r} and key {key}")

    def close(self) -> None:
        for face in self._faces.values():
            if close := getattr(face, "close", None):
                close()
        self.stack.close()


@pytest.fixture(scope="module")
def make_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stage]]:
    """Make stages that end with the module."""
    stages: list[Stage] = []

    def make(**env: str) -> Stage:
        stages.append(Stage(tmp_path_factory.mktemp("stage"), **env))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


def ids(faces: tuple[FaceType, ...] = FACES) -> list[str]:
    return [face.name for face in faces]
