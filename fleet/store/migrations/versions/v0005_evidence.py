"""Rings, looks and the counts they are made from; what a rollout's strategy remembers."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TABLES = (
    "baseline_hours", "decision_snapshots", "looks", "served", "ring_counts", "histories", "rings",
)  # fmt: skip


def upgrade() -> None:
    details = sa.Column("details", sa.JSON(), nullable=False, server_default="{}")
    op.add_column("rollouts", details)
    _rings()
    _counts()
    _looks()


def _rings() -> None:
    op.create_table(
        "rings",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("rollout_id", sa.String(64), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("started_s", sa.Float(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("hashes", sa.JSON(), nullable=False),
    )
    op.create_index("rings_by_rollout", "rings", ["rollout_id", "stage", "attempt"], unique=True)
    op.create_table(
        "histories",
        sa.Column("rollout_id", sa.String(64), primary_key=True),
        sa.Column("taken_s", sa.Float(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
    )


def _counts() -> None:
    op.create_table(
        "ring_counts",
        sa.Column("ring_id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("role", sa.String(16), primary_key=True),
        sa.Column("device", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "served",
        sa.Column("ring_id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("ours", sa.Boolean(), primary_key=True),
        sa.Column("device_id", sa.String(40), primary_key=True),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("over_objective", sa.BigInteger(), nullable=False),
        sa.Column("output_violations", sa.BigInteger(), nullable=False),
        sa.Column("last_window_s", sa.Float(), nullable=False),
    )
    op.create_table(
        "baseline_hours",
        sa.Column("hour", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("device_id", sa.String(40), primary_key=True),
        sa.Column("sums", sa.LargeBinary(), nullable=False),
        sa.Column("outputs", sa.JSON(), nullable=False),
        sa.Column("counters", sa.JSON(), nullable=False),
    )


def _looks() -> None:
    op.create_table(
        "looks",
        sa.Column("ring_id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("rollout_id", sa.String(64), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("k", sa.Integer(), nullable=False),
        sa.Column("at_s", sa.Float(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("counts", sa.LargeBinary(), nullable=False),
    )
    op.create_index("looks_by_rollout", "looks", ["rollout_id", "at_s"])
    op.create_table(
        "decision_snapshots",
        sa.Column("decision_id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("rollout_id", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
    )
    op.create_index("decision_snapshots_by_rollout", "decision_snapshots", ["rollout_id"])


def downgrade() -> None:
    for table in _TABLES:
        op.drop_table(table)
    with op.batch_alter_table("rollouts") as batch_op:
        batch_op.drop_column("details")
