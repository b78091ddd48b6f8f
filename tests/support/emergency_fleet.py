"""A signed fleet with an emergency role: what its offline key can say, over a repository that does not serve it."""

from dataclasses import dataclass

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, MetaFile, Targets

from agent.trust.limits import TrustLimits
from agent.trust.pack import encode_pack, open_pack
from agent.trust.refresh import SIGNED_AT_FIELD
from fleet.repository.emergency import EmergencyChange, next_emergency
from fleet.repository.roles import expiry
from tests.support.signed_fleet import DAY_S, OfferedFiles, SignedFleet

__all__ = ["EmergencyFleet"]

PATHS = ["rollouts/*/emergency"]


@dataclass
class EmergencyFleet(SignedFleet):
    """``emergency(change)`` signs what the role says; packs and offered files then carry it."""

    def __post_init__(self) -> None:
        SignedFleet.__post_init__(self)
        self.emergency_key = CryptoSigner.generate_ed25519()
        self.role: Targets | None = None
        self.raw_emergency = b""
        self.raw_targets = b""
        self._steps = 0
        self.emergency(EmergencyChange())

    def emergency(
        self, change: EmergencyChange, *, key: CryptoSigner | None = None, at_s: float | None = None
    ) -> None:
        """Sign the role's next version; with ``key`` by somebody who should not."""
        self.role = next_emergency(self.role, change, self.now_s if at_s is None else at_s)
        self.raw_emergency = self.signed_by("emergency", self.role, key=key or self.emergency_key)

    def whole(self, **withheld: None) -> tuple[bytes, "OfferedFiles"]:
        """A pack, and what the server offers beside it; ``emergency=None`` withholds that file."""
        self._steps += 1
        top = self.read("1.targets.json").signed
        top.version += 1
        roles = top.delegations.roles
        emergency = DelegatedRole("emergency", [], threshold=1, terminating=True, paths=PATHS)
        top.delegations.roles = {"emergency": emergency, **roles}
        top.add_key(self.emergency_key.public_key, "emergency")
        top.expires = expiry(self.now_s, 365 * DAY_S)
        self.raw_targets = self.raw_targets or self.signed_by("targets", top)
        files = open_pack(self.repository.pack(), TrustLimits())
        snapshot, timestamp = (self.held(role).signed for role in ("snapshot", "timestamp"))
        del files[f"{snapshot.version}.snapshot.json"]
        snapshot.version += 100 * self._steps
        assert self.role is not None
        snapshot.meta["targets.json"] = MetaFile.from_data(2, self.raw_targets, ["sha256"])
        snapshot.meta["emergency.json"] = MetaFile.from_data(
            self.role.version, self.raw_emergency, ["sha256"]
        )
        snapshot.expires = timestamp.expires = expiry(self.now_s, DAY_S)
        raw_snapshot = self.signed_by("snapshot", snapshot)
        files[f"{snapshot.version}.snapshot.json"] = raw_snapshot
        timestamp.version += 100 * self._steps
        timestamp.unrecognized_fields[SIGNED_AT_FIELD] = int(self.now_s)
        timestamp.snapshot_meta = MetaFile.from_data(snapshot.version, raw_snapshot, ["sha256"])
        files["timestamp.json"] = self.signed_by("timestamp", timestamp)
        changes = {
            "targets": self.raw_targets,
            "emergency": self.raw_emergency,
            "snapshot": raw_snapshot,
            "timestamp": files["timestamp.json"],
            **withheld,
        }
        return encode_pack(files), self.offered(**changes)
