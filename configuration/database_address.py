"""Addresses of the SQL database."""

from pathlib import Path
from urllib.parse import quote, unquote

import sqlalchemy
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

_ALLOWED = "must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/NAME (special characters as %XX)"


def sqlite_address(path: Path) -> str:
    """Return the address of a SQLite file; what would end a path in an address is escaped."""
    return f"sqlite:///{quote(str(path))}"


def parse_database(value: str) -> URL:
    """Return an address as SQLAlchemy takes it. Raises ``ValueError``, which does not repeat the password."""
    address = value.strip()
    try:
        parsed = sqlalchemy.make_url(address)
        # ``make_url`` does not look at what it cannot use: a port that is no number, say.
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise ValueError(_ALLOWED) from None
    if backend == "sqlite":
        return _sqlite(address, parsed)
    if backend not in ("postgresql", "postgres"):
        raise ValueError(_ALLOWED)
    if not parsed.database:
        raise ValueError(f"names no database; it {_ALLOWED}")
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername != "postgresql+psycopg":
        raise ValueError(f"names a driver that is not installed; it {_ALLOWED}")
    return parsed


def _sqlite(address: str, parsed: URL) -> URL:
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite") or parsed.host:
        raise ValueError(f"{_ALLOWED}; an absolute path has four slashes")
    if not parsed.database or parsed.database == ":memory:":
        raise ValueError("must name a file: a database in memory is not shared by the processes")
    if "#" in address:
        raise ValueError("holds a '#'; write it as %23")
    # From the address itself: versions of SQLAlchemy differ in whether they unescape a path.
    path = Path(unquote(address.partition(":///")[2].partition("?")[0])).expanduser()
    if "\0" in str(path):
        raise ValueError(_ALLOWED)
    return parsed.set(database=str(path if path.is_absolute() else Path.cwd() / path))
