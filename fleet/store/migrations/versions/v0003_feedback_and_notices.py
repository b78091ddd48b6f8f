"""Telemetry windows hold ground truth from applications, and what is wrong with the device."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("feedback_count", sa.BigInteger, "0"),
    ("feedback_correct", sa.BigInteger, "0"),
    ("feedback_abs_error_sum", sa.Float, "0"),
    ("feedback_unknown", sa.BigInteger, "0"),
    ("notices", sa.JSON, "[]"),
)


def upgrade() -> None:
    for name, kind, default in _COLUMNS:
        op.add_column("windows", sa.Column(name, kind(), nullable=False, server_default=default))


def downgrade() -> None:
    with op.batch_alter_table("windows") as batch_op:
        for name, _, _ in reversed(_COLUMNS):
            batch_op.drop_column(name)
