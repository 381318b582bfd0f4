"""What is said of tenants: what they may use, and whether they are let in."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from store.sql.key_tables import Tenant
from store.sql.tables import now


class TenantStore:
    """The rows of the tenants."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def list(self) -> list[Tenant]:
        """Return those of which something is said, by name."""
        with self._sessions() as session:
            return list(session.scalars(select(Tenant).order_by(Tenant.name)))

    def get(self, name: str) -> Tenant:
        """Return what is said of a tenant; of any other, that nothing is."""
        with self._sessions() as session:
            return session.get(Tenant, name) or Tenant(name=name)

    def change(self, name: str, values: dict[str, Any], blocked: bool | None = None) -> Tenant:
        """Change what is said of a tenant; ``blocked`` None leaves that as it is."""
        with self._sessions.begin() as session:
            row = session.get(Tenant, name, with_for_update=True)
            if row is None:
                row = Tenant(name=name)
                session.add(row)
            for column, value in values.items():
                setattr(row, column, value)
            if blocked is not None:
                row.blocked_at = (row.blocked_at or now()) if blocked else None
            row.updated_at = now()
        return row
