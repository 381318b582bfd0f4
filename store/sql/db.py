"""The SQL database: SQLite by default, PostgreSQL in production. No Flask needed."""

from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session, sessionmaker

from configuration.database_address import parse_database

#: How long a connection may take. Seconds.
_CONNECT_SECONDS = 5

ROOT = Path(__file__).resolve().parents[2]


def connect(url: str) -> Engine:
    """Return an engine for ``url``; makes the folder of a SQLite file."""
    parsed = parse_database(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    # A host that drops packets would hold a thread for minutes.
    waits = {} if parsed.get_backend_name() == "sqlite" else {"connect_timeout": _CONNECT_SECONDS}
    engine = sqlalchemy.create_engine(parsed, pool_pre_ping=True, connect_args=waits)
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
    return engine


def sessions(engine: Engine) -> sessionmaker[Session]:
    return sessionmaker(engine, expire_on_commit=False)


def newest_revision() -> str:
    """Return the name of the schema that this version works with."""
    return ScriptDirectory.from_config(_migrations()).get_current_head() or ""


def migrate(url: str) -> None:
    """Bring the database to the newest schema."""
    engine = connect(url)
    config = _migrations()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    engine.dispose()


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    return config


def _configure_sqlite(connection: object, _: object) -> None:
    """Writers of several processes wait for each other instead of failing at once."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
