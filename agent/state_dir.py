"""What lies where in a state folder."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["StatePaths"]


@dataclass(frozen=True, slots=True)
class StatePaths:
    """The files and folders of one agent, under ``state_dir``."""

    state_dir: Path

    @property
    def journal(self) -> Path:
        return self.state_dir / "journal.db"

    @property
    def spool(self) -> Path:
        return self.state_dir / "spool.db"

    @property
    def trust(self) -> Path:
        return self.state_dir / "trust.db"

    @property
    def pieces(self) -> Path:
        return self.state_dir / "pieces"

    @property
    def slots(self) -> Path:
        return self.state_dir / "slots"

    @property
    def measured(self) -> Path:
        """What was measured of each bundle, and its saved form."""
        return self.state_dir / "measured"

    @property
    def databases(self) -> tuple[Path, ...]:
        return (self.journal, self.spool, self.trust)
