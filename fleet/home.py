"""The fleet folder: what lies where, one fleet manager at a time, and where the running one can be
found.

Rules kept here: the lock is the kernel's (``flock``), so it goes with the process however that
ends; ``run.json`` appears when everything listens and goes when it ends.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleet.errors import ConfigError

__all__ = ["DEFAULT_HOME", "Home", "PkiPaths", "home_of"]

DEFAULT_HOME: Final = "muster-fleet"


def home_of(given: str | Path | None) -> Path:
    """The fleet folder: ``given``, else $MUSTER_HOME, else ./muster-fleet."""
    return Path(given or os.environ.get("MUSTER_HOME") or DEFAULT_HOME)


@dataclass(frozen=True, slots=True)
class PkiPaths:
    """Certificates and their keys (PEM), none of which the signed metadata rests on."""

    folder: Path

    @property
    def server_ca(self) -> Path:
        """Who signs the certificates of servers; what devices and operators are given to trust."""
        return self.folder / "server-ca.pem"

    @property
    def server_ca_key(self) -> Path:
        return self.folder / "server-ca.key.pem"

    @property
    def device_ca(self) -> Path:
        """Who signs the certificates of devices."""
        return self.folder / "device-ca.pem"

    @property
    def device_ca_key(self) -> Path:
        return self.folder / "device-ca.key.pem"

    @property
    def server(self) -> Path:
        """What the fleet manager shows on gRPC and HTTP."""
        return self.folder / "server.pem"

    @property
    def server_key(self) -> Path:
        return self.folder / "server.key.pem"

    @property
    def broker(self) -> Path:
        """What a broker shows."""
        return self.folder / "broker.pem"

    @property
    def broker_key(self) -> Path:
        return self.folder / "broker.key.pem"

    @property
    def manager(self) -> Path:
        """What the fleet manager shows as a client of a broker; signed by the device CA, its common name is
        ``fleet-manager``, which no device can have."""
        return self.folder / "fleet-manager.pem"

    @property
    def manager_key(self) -> Path:
        return self.folder / "fleet-manager.key.pem"

    @property
    def revoked(self) -> Path:
        """The certificates of devices that are no longer to be accepted (CRL)."""
        return self.folder / "devices.crl.pem"


@dataclass(frozen=True, slots=True)
class Home:
    """Paths in a fleet folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "fleet.toml"

    @property
    def database(self) -> Path:
        return self.path / "fleet.db"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def root(self) -> Path:
        """What a device is given to trust this fleet."""
        return self.path / "root.json"

    @property
    def claims_public(self) -> Path:
        """The public key by which claims about bundles are checked, outside of the fleet too."""
        return self.path / "claims.pub.pem"

    @property
    def pki(self) -> PkiPaths:
        """Certificates and their keys."""
        return PkiPaths(self.path / "pki")

    @property
    def run_file(self) -> Path:
        """Where the running fleet manager is found, and the token of who may read this folder."""
        return self.path / "run.json"

    @property
    def local_token(self) -> Path:
        """The token of who may read this folder; in ``run_file`` too while a fleet manager runs."""
        return self.path / "local-token"

    @property
    def audit_head(self) -> Path:
        """The head of the audit log, outside of the database."""
        return self.path / "audit-head.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only fleet manager of this folder.

        Raises:
            ConfigError: another one runs, or the folder cannot be written.
        """
        try:
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"{self.path} is not a fleet folder that can be written ({error.strerror}): "
                "`fleet init` makes one"
            ) from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(
                    f"a fleet manager already runs in {self.path}: stop it first, or use another folder"
                ) from error
            yield
        finally:
            os.close(lock)

    def write_run_file(self, content: Mapping[str, Any]) -> None:
        """Say where the running fleet manager is found. Seen whole or not at all, and by this user alone."""
        scratch = self.run_file.with_suffix(".tmp")
        scratch.unlink(missing_ok=True)  # one that a crash left may be open to others
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(scratch, flags, 0o600), "w", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(content), indent=2) + "\n")
        scratch.replace(self.run_file)

    def remove_run_file(self) -> None:
        self.run_file.unlink(missing_ok=True)
