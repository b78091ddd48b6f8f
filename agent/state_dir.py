"""What lies where in a state folder."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["IdentityPaths", "StatePaths"]


@dataclass(frozen=True, slots=True)
class IdentityPaths:
    """What a device is known by (PEM). Enrolled when ``certificate`` exists."""

    folder: Path

    @property
    def identity_key(self) -> Path:
        """The long-lived key, from which a lapsed certificate is renewed."""
        return self.folder / "identity.key.pem"

    @property
    def device_key(self) -> Path:
        """The key of the certificate in use: for TLS, and for reports over MQTT."""
        return self.folder / "device.key.pem"

    @property
    def certificate(self) -> Path:
        """The certificate in use, and the device CA's behind it."""
        return self.folder / "device.pem"

    @property
    def server_ca(self) -> Path:
        """Whose servers the device believes."""
        return self.folder / "server-ca.pem"

    @property
    def next_key(self) -> Path:
        """The key of a certificate that has been asked for."""
        return self.folder / "next.key.pem"

    @property
    def next_certificate(self) -> Path:
        """A certificate that has come and is not in use yet."""
        return self.folder / "next.pem"

    @property
    def enrolment(self) -> Path:
        """Where this device enrolled (JSON)."""
        return self.folder / "enrolment.json"


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
    def identity(self) -> IdentityPaths:
        return IdentityPaths(self.state_dir / "identity")

    @property
    def databases(self) -> tuple[Path, ...]:
        return (self.journal, self.spool, self.trust)
