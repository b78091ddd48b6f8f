"""Bringing a database to the newest revision, from code: no alembic.ini, no second way.

Rules kept here: the schema only ever comes from ``fleet/store/migrations/versions``; a database
whose revision this program does not know is refused.
"""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from fleet.errors import ConfigError

__all__ = ["current_revision", "newest_revision", "upgrade"]

_MIGRATIONS: Final = Path(__file__).parent / "migrations"


def upgrade(engine: Engine) -> None:
    """Apply every migration that is missing, in one transaction.

    Raises:
        ConfigError: a newer Muster wrote this database.
    """
    config = _config()
    script = ScriptDirectory.from_config(config)
    with engine.begin() as connection:
        revision = current_revision(connection)
        if revision == script.get_current_head():
            return
        if revision is not None and revision not in {
            one.revision for one in script.walk_revisions()
        }:
            raise ConfigError(
                f"database {engine.url.render_as_string()} is at revision {revision!r}, which this "
                "version of Muster does not know: a newer one wrote it. Upgrade Muster, or restore "
                "the backup made before the upgrade."
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def current_revision(connection: Connection) -> str | None:
    """The revision the database is at; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str | None:
    """The revision this program expects."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config
