"""The migrations make exactly the tables that the code expects, on both databases."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from settings import ROOT
from store.sql import db, file_tables  # noqa: F401 (its tables belong to the metadata)
from store.sql.tables import Base
from tests.conftest import require


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'migrated.db'}"
    else:
        yield request.getfixturevalue("postgres_url")


def test_migrated_equals_metadata(url: str) -> None:
    db.migrate(url)
    engine = db.connect(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_migrating_twice_changes_nothing(url: str) -> None:
    db.migrate(url)
    db.migrate(url)


def test_there_is_one_head_and_numbers_without_gaps() -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    assert len(scripts.get_heads()) == 1
    numbers = sorted(script.revision for script in scripts.walk_revisions())
    assert numbers == [f"{number:04d}" for number in range(1, len(numbers) + 1)]


def test_alembic_s_own_command_works(tmp_path: Path) -> None:
    command = shutil.which("alembic")
    require(command is not None, "alembic is not on PATH")
    env = {**os.environ, "DATABASE_URL": f"sqlite:///{tmp_path / 'cli.db'}"}
    # As an operator calls it.
    env.pop("PYTHONPATH", None)
    done = subprocess.run([str(command), "upgrade", "head"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
