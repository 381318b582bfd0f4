"""Alembic's entry point: runs the migrations on the connection it is given, or on DATABASE_URL."""

from alembic import context

from settings import Settings
from store.sql import db, file_tables, key_tables, usage_tables  # noqa: F401 (their tables belong to the metadata)
from store.sql.tables import Base


def _run(connection: object) -> None:
    # SQLite cannot alter most of a table in place; batch mode copies it.
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)  # type: ignore[arg-type]
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    with db.connect(Settings.from_env_or_exit().database_url).connect() as opened:
        _run(opened)
        opened.commit()
