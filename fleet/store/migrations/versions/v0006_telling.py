"""Events on their way to webhooks, how far each webhook has got, and what external checks said."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("message_id", sa.String(64), nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("at_s", sa.Float(), nullable=False),
        sa.Column("rollout_id", sa.String(64), nullable=False),
        sa.Column("path", sa.String(256), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("outbox_by_rollout", "outbox", ["rollout_id", "type", "id"])
    op.create_table(
        "webhooks",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("delivered_id", sa.Integer(), nullable=False),
        sa.Column("delivered", sa.Integer(), nullable=False),
        sa.Column("delivered_s", sa.Float(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_try_s", sa.Float(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column("given_up", sa.Integer(), nullable=False),
        sa.Column("given_up_s", sa.Float(), nullable=True),
    )
    op.create_table(
        "check_results",
        sa.Column("rollout_id", sa.String(64), primary_key=True),
        sa.Column("url", sa.Text(), primary_key=True),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("stage_started_s", sa.Float(), nullable=False),
        sa.Column("asked_s", sa.Float(), nullable=False),
        sa.Column("answered_s", sa.Float(), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    for table in ("check_results", "webhooks", "outbox"):
        op.drop_table(table)
