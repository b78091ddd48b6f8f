"""Reports can be found in the order of their arrival: old ones are deleted in it."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("windows") as batch_op:
        batch_op.create_index("windows_by_arrival", ["received_s"], unique=False)
    with op.batch_alter_table("deployment_events") as batch_op:
        batch_op.create_index("deployment_events_by_arrival", ["received_s"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("deployment_events") as batch_op:
        batch_op.drop_index("deployment_events_by_arrival")
    with op.batch_alter_table("windows") as batch_op:
        batch_op.drop_index("windows_by_arrival")
