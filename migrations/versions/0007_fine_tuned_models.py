"""adapters by the names that OpenAI's clients use, and checkpoints that can be asked"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    with op.batch_alter_table("adapters") as table:
        table.add_column(sa.Column("model_name", sa.String(256), server_default="", nullable=False))
        table.add_column(sa.Column("step", sa.Integer(), server_default="0", nullable=False))
        table.create_index(op.f("ix_adapters_job_id"), ["job_id"])
        table.create_index(op.f("ix_adapters_model_name"), ["model_name"])


def downgrade() -> None:
    with op.batch_alter_table("adapters") as table:
        table.drop_index(op.f("ix_adapters_model_name"))
        table.drop_index(op.f("ix_adapters_job_id"))
        table.drop_column("step")
        table.drop_column("model_name")
