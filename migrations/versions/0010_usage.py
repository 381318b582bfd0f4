"""What was used: each request, and by quarters of an hour what is older.

Revision: 0010, after keys and tenants.
"""

import sqlalchemy as sa
from alembic import op

from store.sql.tables import Utc

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def _used() -> list[sa.Column]:
    return [
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(40), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("adapter", sa.String(256), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        *(sa.Column(f"{name}_tokens", sa.BigInteger(), nullable=False) for name in ("prompt", "cached", "completion")),
        sa.Column("slot", Utc(), nullable=False),
    ]


def upgrade() -> None:
    op.create_table(
        "usage_records",
        sa.Column("id", sa.String(40), nullable=False),
        *_used(),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("final", sa.Boolean(), nullable=False),
        sa.Column("batch", sa.Boolean(), nullable=False),
        sa.Column("ttft_ms", sa.Integer(), nullable=True),
        sa.Column("started_at", Utc(), nullable=False),
        sa.Column("ended_at", Utc(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage_records"),
    )
    op.create_table(
        "usage_slots",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        *_used(),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage_slots"),
    )
    for table in ("usage_records", "usage_slots"):
        op.create_index(f"ix_{table}_tenant_slot", table, ["tenant", "slot"])
        op.create_index(f"ix_{table}_slot", table, ["slot"])


def downgrade() -> None:
    op.drop_table("usage_slots")
    op.drop_table("usage_records")
