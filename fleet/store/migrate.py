"""Bringing a database to the newest revision, from code: no alembic.ini, no second way.

Rules kept here: the schema only ever comes from ``fleet/store/migrations/versions``, whose files are named after their
revisions; a database whose revision this program does not know is refused; alembic, which takes longer to import than
a database to open, is imported only when there is something to migrate.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, Engine, column, inspect, select, table

from fleet.errors import ConfigError

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["current_revision", "newest_revision", "upgrade"]

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_FILE: Final = re.compile(r"v(\d{4})_\w+\.py")
_VERSION: Final = table("alembic_version", column("version_num"))


def upgrade(engine: Engine) -> None:
    """Apply every migration that is missing, in one transaction.

    Raises:
        ConfigError: a newer Muster wrote this database.
    """
    with engine.begin() as connection:
        revision = current_revision(connection)
        known = _revisions()
        if revision == known[-1]:
            return
        if revision is not None and revision not in known:
            raise ConfigError(
                f"database {engine.url.render_as_string()} is at revision {revision!r}, which this "
                "version of Muster does not know: a newer one wrote it. Upgrade Muster, or restore "
                "the backup made before the upgrade."
            )
        from alembic import command

        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def current_revision(connection: Connection) -> str | None:
    """The revision the database is at; None for an empty one."""
    if not inspect(connection).has_table(_VERSION.name):
        return None
    revision: str | None = connection.execute(select(_VERSION.c.version_num)).scalar_one_or_none()
    return revision


def newest_revision() -> str:
    """The revision this program expects."""
    return _revisions()[-1]


def _revisions() -> list[str]:
    """Every revision this program knows, in the order in which they are applied."""
    names = (_FILE.fullmatch(path.name) for path in (_MIGRATIONS / "versions").iterdir())
    return sorted(match[1] for match in names if match)


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config
