"""The database: whether it answers, and has this version's tables; and whether somebody holds a key."""

from collections.abc import Iterator

from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from cli.doctor.finding import Finding, Level, failure, ok, warning
from configuration.listen_address import is_loopback
from settings import Settings
from store.sql import db
from store.sql.authenticator import ApiKeyAuthenticator

_PART = "database"


def look_at_database(settings: Settings) -> Iterator[Finding]:
    """Yield what there is to say of the database, and of the keys in it and in the environment."""
    try:
        engine = db.connect(settings.database_url)
        try:
            finding = _tables(engine)
            yield finding
            if finding.level == Level.OK:
                yield _keys(settings, ApiKeyAuthenticator(settings, db.sessions(engine)).configured())
        finally:
            engine.dispose()
    except (SQLAlchemyError, OSError) as error:
        # Its text may hold the address with its password.
        remedy = "Look at DATABASE_URL, and whether the server runs and lets this user in"
        yield failure(_PART, f"it cannot be used: {error.__class__.__name__}", remedy)


def _tables(engine: Engine) -> Finding:
    with engine.connect() as connection:
        kind = connection.dialect.name
        known = "alembic_version" in inspect(connection).get_table_names()
        found = str(connection.scalar(text("SELECT version_num FROM alembic_version")) or "") if known else ""
    newest = db.newest_revision()
    if found == newest:
        return ok(_PART, f"{kind}, its tables are this version's")
    if found > newest:
        remedy = "Install the version that made them, or restore a copy from before"
        return failure(_PART, f"{kind}, its tables are of a newer version ({found})", remedy)
    what = f"{kind}, its tables are {f'those of revision {found}' if found else 'missing'}; {newest} is needed"
    return warning(_PART, what, "bin/serve brings them up to date; elsewhere: bin/cy-llm keys list")


def _keys(settings: Settings, configured: bool) -> Finding:
    remedy = "Set CY_LLM_API_KEY, or: bin/cy-llm keys create NAME"
    if configured:
        return ok("keys", "calls need a key")
    if not settings.host or is_loopback(settings.host):
        return warning("keys", "no key exists: everybody on this machine is let in", remedy)
    what = f"no key exists, and {settings.host} is reachable from other machines: the front door will not start"
    return failure("keys", what, remedy)
