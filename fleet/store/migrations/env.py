"""What alembic runs: the migrations, in the transaction that ``fleet.store.migrate`` opened."""

from alembic import context

from fleet.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
