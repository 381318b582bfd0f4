"""Tenants (whose a key, a job, an adapter is; what was there before belongs to ``default``), and background jobs.

Processes of the version before go on writing rows while this one is rolled out: every new
column has a default on the server.

Revision: 0003, after training and adapters.
"""

import sqlalchemy as sa
from alembic import op

from store.sql.tables import Utc

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TABLES = ("api_keys", "training_jobs", "adapters")
_INDEXED = ("training_jobs", "adapters")


def _tenant() -> sa.Column:
    return sa.Column("tenant", sa.String(64), nullable=False, server_default="default")


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(table, _tenant())
    for table in _INDEXED:
        op.create_index(f"ix_{table}_tenant", table, ["tenant"])
    _rebuild_aliases([_tenant()], ["tenant", "name"])
    op.create_table(
        "background_jobs",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("runner", sa.String(128), nullable=False),
        sa.Column("lease_ends", Utc(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("message", sa.String(1000), nullable=False),
        sa.Column("created_at", Utc(), nullable=False),
        sa.Column("ended_at", Utc(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_background_jobs"),
    )
    for column in ("kind", "status", "ended_at"):
        op.create_index(f"ix_background_jobs_{column}", "background_jobs", [column])


def downgrade() -> None:
    op.drop_table("background_jobs")
    op.execute("DELETE FROM adapter_aliases WHERE tenant <> 'default'")
    _rebuild_aliases([], ["name"])
    for table in _INDEXED:
        op.drop_index(f"ix_{table}_tenant", table)
    for table in _TABLES:
        with op.batch_alter_table(table) as batch:
            batch.drop_column("tenant")


def _rebuild_aliases(more: list[sa.Column], key: list[str]) -> None:
    """A primary key changes: SQLite can only copy the table."""
    op.rename_table("adapter_aliases", "adapter_aliases_old")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE adapter_aliases_old DROP CONSTRAINT pk_adapter_aliases")
    op.create_table(
        "adapter_aliases",
        *more,
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("previous", sa.Integer(), nullable=False),
        sa.Column("updated_at", Utc(), nullable=False),
        sa.PrimaryKeyConstraint(*key, name="pk_adapter_aliases"),
    )
    columns = "name, version, previous, updated_at"
    op.execute(f"INSERT INTO adapter_aliases ({columns}) SELECT {columns} FROM adapter_aliases_old")
    op.drop_table("adapter_aliases_old")
