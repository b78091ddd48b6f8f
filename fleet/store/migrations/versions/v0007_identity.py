"""Where each device stands, the tokens that devices enrol with, their certificates, and what became of them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "devices", sa.Column("standing", sa.String(16), nullable=False, server_default="open")
    )
    op.create_table(
        "enrolment_tokens",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("device_id", sa.String(40), nullable=False),
        sa.Column("device_class", sa.String(40), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("created_s", sa.Float(), nullable=False),
        sa.Column("expires_s", sa.Float(), nullable=False),
        sa.Column("used_by", sa.String(64), nullable=False),
    )
    op.create_index("enrolment_tokens_by_device", "enrolment_tokens", ["device_id"])
    op.create_table(
        "device_identities",
        sa.Column("device_id", sa.String(40), primary_key=True),
        sa.Column("device_class", sa.String(40), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("identity_key", sa.LargeBinary(), nullable=False),
        sa.Column("identity_sha256", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("changed_s", sa.Float(), nullable=False),
    )
    op.create_table(
        "device_certificates",
        sa.Column("serial", sa.String(40), primary_key=True),
        sa.Column("device_id", sa.String(40), nullable=False),
        sa.Column("device_class", sa.String(40), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False, unique=True),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.Column("not_before_s", sa.Float(), nullable=False),
        sa.Column("not_after_s", sa.Float(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("changed_s", sa.Float(), nullable=False),
    )
    op.create_index("device_certificates_by_device", "device_certificates", ["device_id", "state"])
    op.create_table(
        "identity_events",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("device_id", sa.String(40), nullable=False),
        sa.Column("at_s", sa.Float(), nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
    )
    op.create_index("identity_events_by_device", "identity_events", ["device_id", "id"])


def downgrade() -> None:
    for table in (
        "identity_events",
        "device_certificates",
        "device_identities",
        "enrolment_tokens",
    ):
        op.drop_table(table)
    with op.batch_alter_table("devices") as devices:
        devices.drop_column("standing")
