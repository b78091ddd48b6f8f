"""Windows of versions held beside, and what the gate can judge beyond errors; devices say more of themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_WINDOWS = (
    ("role", sa.String(16), ""),
    ("shadow_compared", sa.BigInteger(), "0"),
    ("shadow_disagreed", sa.BigInteger(), "0"),
    ("shadow_dropped", sa.BigInteger(), "0"),
    ("confidence_count", sa.BigInteger(), "0"),
    ("low_confidence", sa.BigInteger(), "0"),
    ("output_counts", sa.JSON(), "{}"),
    ("counters", sa.JSON(), "{}"),
)
_DEVICES = ("execution_provider", "utc_offset_minutes", "battery_percent", "on_battery")


def upgrade() -> None:
    for name, kind, default in _WINDOWS:
        op.add_column("windows", sa.Column(name, kind, nullable=False, server_default=default))
    provider = sa.Column("execution_provider", sa.String(40), nullable=False, server_default="")
    op.add_column("devices", provider)
    op.add_column("devices", sa.Column("utc_offset_minutes", sa.Integer(), nullable=True))
    op.add_column("devices", sa.Column("battery_percent", sa.Float(), nullable=True))
    flag = sa.Boolean()
    op.add_column("devices", sa.Column("on_battery", flag, nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("devices") as batch_op:
        for name in reversed(_DEVICES):
            batch_op.drop_column(name)
    with op.batch_alter_table("windows") as batch_op:
        for name, _, _ in reversed(_WINDOWS):
            batch_op.drop_column(name)
