"""Keys with models, bounds, an end and a rotation; tenants. A key's name is its tenant's own.

Processes of the version before go on writing rows while this one is rolled out: every new
column may be null, or has a default on the server.

Revision: 0009, after batches.
"""

import sqlalchemy as sa
from alembic import op

from store.sql.tables import Utc

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_BOUNDS = ("requests_per_minute", "streams")
_MOMENTS = ("last_used_at", "expires_at", "previous_until")


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as table:
        table.add_column(sa.Column("prefix", sa.String(16), nullable=False, server_default=""))
        table.add_column(sa.Column("models", sa.JSON(), nullable=True))
        for name in _BOUNDS:
            table.add_column(sa.Column(name, sa.Integer(), nullable=True))
        for name in _MOMENTS:
            table.add_column(sa.Column(name, Utc(), nullable=True))
        table.add_column(sa.Column("previous_digest", sa.String(64), nullable=True))
        table.drop_constraint("uq_api_keys_name", type_="unique")
        table.create_unique_constraint("uq_api_keys_tenant", ["tenant", "name"])
        table.create_unique_constraint("uq_api_keys_previous_digest", ["previous_digest"])
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(64), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=True) for name in _BOUNDS),
        sa.Column("blocked_at", Utc(), nullable=True),
        sa.Column("updated_at", Utc(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )


def downgrade() -> None:
    op.drop_table("tenants")
    with op.batch_alter_table("api_keys") as table:
        table.drop_constraint("uq_api_keys_previous_digest", type_="unique")
        table.drop_constraint("uq_api_keys_tenant", type_="unique")
        table.create_unique_constraint("uq_api_keys_name", ["name"])
        for name in ("previous_digest", *_MOMENTS, *_BOUNDS, "models", "prefix"):
            table.drop_column(name)
