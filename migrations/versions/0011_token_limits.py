"""Tokens a minute, and a quota of tokens, of a key and of a tenant.

Revision: 0011, after usage.
"""

import sqlalchemy as sa
from alembic import op

from store.sql.tables import Utc

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_TABLES = ("api_keys", "tenants")


def upgrade() -> None:
    for table in _TABLES:
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column("tokens_per_minute", sa.Integer(), nullable=True))
            batch.add_column(sa.Column("quota_tokens", sa.BigInteger(), nullable=True))
            batch.add_column(sa.Column("quota_period", sa.String(8), nullable=True))
            batch.add_column(sa.Column("quota_counted_from", Utc(), nullable=True))


def downgrade() -> None:
    for table in _TABLES:
        with op.batch_alter_table(table) as batch:
            for column in ("quota_counted_from", "quota_period", "quota_tokens", "tokens_per_minute"):
                batch.drop_column(column)
