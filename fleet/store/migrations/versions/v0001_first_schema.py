"""The first schema: devices and their reports, bundles, rollouts, decisions, directives."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_bundles()
    _create_decisions()
    _create_deployment_events()
    _create_deployments()
    _create_device_models()
    _create_devices()
    _create_directives()
    _create_rollouts()
    _create_windows()


def downgrade() -> None:

    with op.batch_alter_table("windows") as batch_op:
        batch_op.drop_index("windows_by_device")
        batch_op.drop_index("windows_by_bundle")

    op.drop_table("windows")
    with op.batch_alter_table("rollouts") as batch_op:
        batch_op.drop_index("rollouts_by_state")

    op.drop_table("rollouts")
    op.drop_table("directives")
    op.drop_table("devices")
    op.drop_table("device_models")
    with op.batch_alter_table("deployments") as batch_op:
        batch_op.drop_index("deployments_by_rollout")

    op.drop_table("deployments")
    with op.batch_alter_table("deployment_events") as batch_op:
        batch_op.drop_index("deployment_events_by_rollout")

    op.drop_table("deployment_events")
    with op.batch_alter_table("decisions") as batch_op:
        batch_op.drop_index("decisions_by_rollout")

    op.drop_table("decisions")
    op.drop_table("bundles")


def _create_bundles() -> None:
    op.create_table(
        "bundles",
        sa.Column("path", sa.String(length=256), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("device_class", sa.String(length=64), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("manifest_bytes", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("release", sa.Integer(), nullable=False),
        sa.Column("published_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("path"),
    )


def _create_decisions() -> None:
    op.create_table(
        "decisions",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("rollout_id", sa.String(length=64), nullable=False),
        sa.Column("at_s", sa.Float(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("from_state", sa.String(length=32), nullable=False),
        sa.Column("to_state", sa.String(length=32), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("decisions") as batch_op:
        batch_op.create_index("decisions_by_rollout", ["rollout_id"], unique=False)


def _create_deployment_events() -> None:
    op.create_table(
        "deployment_events",
        sa.Column("device_id", sa.String(length=40), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("deployment_id", sa.String(length=64), nullable=False),
        sa.Column("rollout_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("bundle", sa.String(length=256), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason_code", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("bytes_fetched", sa.BigInteger(), nullable=False),
        sa.Column("measures", sa.JSON(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("received_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "boot_id", "seq"),
    )
    with op.batch_alter_table("deployment_events") as batch_op:
        batch_op.create_index(
            "deployment_events_by_rollout", ["rollout_id", "device_id"], unique=False
        )


def _create_deployments() -> None:
    op.create_table(
        "deployments",
        sa.Column("device_id", sa.String(length=40), nullable=False),
        sa.Column("rollout_id", sa.String(length=64), nullable=False),
        sa.Column("deployment_id", sa.String(length=64), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason_code", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("updated_s", sa.Float(), nullable=False),
        sa.Column("committed_s", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("device_id", "rollout_id"),
    )
    with op.batch_alter_table("deployments") as batch_op:
        batch_op.create_index("deployments_by_rollout", ["rollout_id"], unique=False)


def _create_device_models() -> None:
    op.create_table(
        "device_models",
        sa.Column("device_id", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("rollout_id", sa.String(length=64), nullable=False),
        sa.Column("updated_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "model"),
    )


def _create_devices() -> None:
    op.create_table(
        "devices",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("device_class", sa.String(length=64), nullable=False),
        sa.Column("hardware", sa.String(length=64), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("agent_version", sa.String(length=64), nullable=False),
        sa.Column("onnxruntime_version", sa.String(length=64), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("disk_free_bytes", sa.BigInteger(), nullable=False),
        sa.Column("cpu_count", sa.Integer(), nullable=False),
        sa.Column("operating_system", sa.String(length=128), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("first_seen_s", sa.Float(), nullable=False),
        sa.Column("last_seen_s", sa.Float(), nullable=False),
        sa.Column("inventory_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def _create_directives() -> None:
    op.create_table(
        "directives",
        sa.Column("rollout_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("updated_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("rollout_id"),
    )


def _create_rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("bundle", sa.String(length=256), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("previous_bundle", sa.String(length=256), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("stage_started_s", sa.Float(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_s", sa.Float(), nullable=False),
        sa.Column("updated_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("number"),
    )
    with op.batch_alter_table("rollouts") as batch_op:
        batch_op.create_index("rollouts_by_state", ["state"], unique=False)


def _create_windows() -> None:
    op.create_table(
        "windows",
        sa.Column("device_id", sa.String(length=40), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("rollout_id", sa.String(length=64), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("over_objective", sa.BigInteger(), nullable=False),
        sa.Column("input_violations", sa.BigInteger(), nullable=False),
        sa.Column("output_violations", sa.BigInteger(), nullable=False),
        sa.Column("non_finite", sa.BigInteger(), nullable=False),
        sa.Column("error_kinds", sa.JSON(), nullable=False),
        sa.Column("latency", sa.LargeBinary(), nullable=False),
        sa.Column("rss_bytes", sa.BigInteger(), nullable=False),
        sa.Column("cpu_percent", sa.Float(), nullable=False),
        sa.Column("disk_free_bytes", sa.BigInteger(), nullable=False),
        sa.Column("temperature_c", sa.Float(), nullable=True),
        sa.Column("merged", sa.Integer(), nullable=False),
        sa.Column("received_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "boot_id", "seq"),
    )
    with op.batch_alter_table("windows") as batch_op:
        batch_op.create_index("windows_by_bundle", ["manifest_sha256", "end_ms"], unique=False)
        batch_op.create_index("windows_by_device", ["device_id", "end_ms"], unique=False)
