"""batches"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    moments = ("in_progress_at", "cancelling_at", "finalizing_at", "ended_at")
    op.create_table(
        "batches",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(64), server_default="default", nullable=False),
        sa.Column("owner", sa.String(40), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file_id", sa.String(40), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("fence", "total", "completed", "failed")),
        *(sa.Column(name, sa.JSON(), nullable=False) for name in ("usage", "errors", "metadata")),
        sa.Column("keep_seconds", sa.Integer(), nullable=True),
        sa.Column("output_file_id", sa.String(40), nullable=False),
        sa.Column("error_file_id", sa.String(40), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        *(sa.Column(name, sa.DateTime(timezone=True), nullable=True) for name in moments),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    for column in ("tenant", "status"):
        op.create_index(op.f(f"ix_batches_{column}"), "batches", [column])


def downgrade() -> None:
    op.drop_table("batches")
