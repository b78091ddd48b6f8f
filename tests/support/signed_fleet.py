"""A signed repository in a folder and a device that reads it, for tests of trust: no network, no clock.

``SignedFleet`` signs what a fleet manager and a releaser sign; ``OfferedFiles`` is the untrusted network between,
in which any file can be altered, replaced or withheld.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Targets

from agent.bundle import BundleFile, Manifest, Piece, Stage, TensorSpec
from agent.trust import BundleRelease, Directive, TrustState
from agent.trust.limits import TrustLimits
from agent.trust.pack import encode_pack, open_pack
from agent.trust.refresh import SIGNED_AT_FIELD, TrustRefresher
from fleet.repository import ReleaseEntry, Repository, init_repository, key_path, sign_release
from fleet.repository.files import write_durable
from fleet.repository.keys import load_key
from fleet.repository.roles import VALIDITY, expiry, to_bytes

DAY_S = 86_400.0
START_S = 1_800_000_000.0


def raw_manifest(model: str, version: str, device_class: str = "cam", note: str = "") -> bytes:
    """The smallest manifest that is one; ``note`` makes another of the same name."""
    content = f"{model} {version} {note}".encode()
    digest = sha256(content).hexdigest()
    spec = TensorSpec("x", "FP32", (1,))
    return Manifest(
        model=model,
        version=version,
        device_class=device_class,
        created_s=int(START_S),
        files=(BundleFile("m.onnx", len(content), digest, (Piece(digest, len(content)),)),),
        stages=(Stage("main", "m.onnx", (("x", "x"),), (("y", "y"),)),),
        inputs=(spec,),
        outputs=(replace(spec, name="y"),),
    ).to_bytes()


@dataclass
class SignedFleet:
    """A repository, its manifests and the time at which it signs next."""

    home: Path
    now_s: float = START_S
    manifests: dict[str, bytes] = field(default_factory=dict)
    root: bytes = b""

    def __post_init__(self) -> None:
        self.root = init_repository(self.home, fleet_name="lab", now_s=self.now_s)
        self.reopen()

    def reopen(self) -> None:
        self.repository = Repository(self.home, self.manifests.get)

    def publish(
        self,
        model: str = "m",
        version: str = "1",
        *,
        device_class: str = "cam",
        note: str = "",
        **custom: Any,
    ) -> BundleRelease:
        """Sign a bundle into the release role and publish it."""
        raw = raw_manifest(model, version, device_class, note)
        entry = ReleaseEntry(model=model, version=version, device_class=device_class, **custom)
        current, _ = self.repository.release_metadata()
        signed = sign_release(current, key_path(self.home, "release"), entry, raw, self.now_s)
        self.manifests[sha256(raw).hexdigest()] = raw
        self.repository.publish(signed, self.now_s)
        return self.repository.releases()[entry.path]

    def direct(self, *directives: Directive) -> bytes:
        """Sign exactly these directives; the pack that says so."""
        self.repository.set_directives(directives, self.now_s)
        return self.repository.pack()

    def key(self, role: str) -> CryptoSigner:
        return load_key(key_path(self.home, role))

    def offered(self, **changes: bytes | None) -> "OfferedFiles":
        """Everything that is served now, with some files changed (``snapshot=...``) or withheld (None)."""
        return OfferedFiles(self.repository, {f"{role}.json": raw for role, raw in changes.items()})

    # --- what whoever holds a key can sign ---------------------------------------------------------

    def read(self, name: str) -> Metadata[Any]:
        raw = self.repository.metadata(name)
        assert raw is not None
        return Metadata.from_bytes(raw)

    def signed_by(self, role: str, signed: Any, *, key: CryptoSigner | None = None) -> bytes:
        metadata: Metadata[Any] = Metadata(signed)
        metadata.sign(key or self.key(role))
        return to_bytes(metadata)

    def rotate_root(self, *roles: str, sign_old: bool = True, new_root_key: bool = False) -> bytes:
        """The next root, with new keys for the given top-level roles."""
        newest = max(
            self.home.glob("repository/metadata/*.root.json"),
            key=lambda path: int(path.name.split(".")[0]),
        )
        metadata: Metadata[Any] = Metadata.from_bytes(newest.read_bytes())
        root, old = metadata.signed, self.key("root")
        for role in (*roles, *(("root",) if new_root_key else ())):
            fresh = CryptoSigner.generate_ed25519()
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            root.add_key(fresh.public_key, role)
            write_durable(key_path(self.home, role), fresh.private_bytes, mode=0o600)
        root.version += 1
        root.expires = expiry(self.now_s, VALIDITY.root_s)
        metadata.signatures.clear()
        if sign_old:
            metadata.sign(old)
        metadata.sign(self.key("root"), append=True)
        raw = to_bytes(metadata)
        write_durable(newest.with_name(f"{root.version}.root.json"), raw)
        self.reopen()
        return raw

    def forged_pack(
        self,
        *,
        signed_at_s: float | None = None,
        expires_s: float | None = None,
        change: Callable[[Targets], None] | None = None,
    ) -> bytes:
        """A pack signed with the three online keys, past the repository's own checks."""
        at_s = self.now_s if signed_at_s is None else signed_at_s
        expires = expiry(at_s + DAY_S if expires_s is None else expires_s, 0)
        rollout = self.held("rollout").signed
        rollout.version += 1
        rollout.expires = expires
        if change is not None:
            change(rollout)
        raw = self.signed_by("rollout", rollout)
        return self._pack_around("rollout", raw, rollout.version, at_s, expires)

    def pack_that_names_rollout(self, old: Metadata[Any]) -> bytes:
        """A pack with old directives under a new snapshot and timestamp."""
        return self.pack_with_role("rollout", to_bytes(old), old.signed.version)

    def pack_with_role(self, role: str, raw: bytes, version: int) -> bytes:
        """A pack whose snapshot names this file for a role."""
        return self._pack_around(role, raw, version, self.now_s, expiry(self.now_s, DAY_S))

    def pack_with_fresh_timestamp(self, at_s: float) -> bytes:
        """A pack in which the timestamp alone is signed anew, at another time."""
        files = open_pack(self.repository.pack(), TrustLimits())
        timestamp = self.held("timestamp").signed
        timestamp.version += 1
        timestamp.expires = expiry(at_s, DAY_S)
        timestamp.unrecognized_fields[SIGNED_AT_FIELD] = int(at_s)
        return encode_pack({**files, "timestamp.json": self.signed_by("timestamp", timestamp)})

    def resign_everything(self) -> None:
        """Sign every online role anew, after a change of keys."""
        held = self.repository.directives()
        self.repository.set_directives([], self.now_s)
        self.repository.set_directives(held, self.now_s)

    def held(self, role: str) -> Metadata[Any]:
        """What the pack holds of a role."""
        files = open_pack(self.repository.pack(), TrustLimits())
        return next(
            Metadata.from_bytes(raw) for name, raw in files.items() if f".{role}." in f".{name}"
        )

    def _pack_around(
        self, role: str, raw: bytes, version: int, at_s: float, expires: datetime
    ) -> bytes:
        rollout, snapshot, timestamp = (
            self.held(held).signed for held in ("rollout", "snapshot", "timestamp")
        )
        files = open_pack(self.repository.pack(), TrustLimits())
        del files[f"{snapshot.version}.snapshot.json"]
        if role == "rollout":
            del files[f"{rollout.version}.rollout.json"]
            files[f"{version}.rollout.json"] = raw
        snapshot.version += 1
        snapshot.expires = expires
        snapshot.meta[f"{role}.json"] = MetaFile.from_data(version, raw, ["sha256"])
        raw_snapshot = self.signed_by("snapshot", snapshot)
        files[f"{snapshot.version}.snapshot.json"] = raw_snapshot
        timestamp.version += 1
        timestamp.expires = expires
        timestamp.unrecognized_fields[SIGNED_AT_FIELD] = int(at_s)
        timestamp.snapshot_meta = MetaFile.from_data(snapshot.version, raw_snapshot, ["sha256"])
        files["timestamp.json"] = self.signed_by("timestamp", timestamp)
        return encode_pack(files)


class OfferedFiles:
    """A metadata source under an attacker's control: the repository's files, some of them changed."""

    def __init__(self, repository: Repository, changes: Mapping[str, bytes | None]) -> None:
        self._repository = repository
        self._changes = changes
        self.asked: list[str] = []

    def get_metadata(self, name: str) -> bytes | None:
        self.asked.append(name)
        role = name.removesuffix(".json").rpartition(".")[2]
        if f"{role}.json" in self._changes and not (role == "root" and name == "1.root.json"):
            return self._changes[f"{role}.json"]
        return self._repository.metadata(name)

    def get_target(self, path: str, sha256: str) -> bytes | None:
        return self._repository.target(path, sha256)


@dataclass
class Reader:
    """A device's trust: its root, its state and the refreshes it makes."""

    root: bytes
    state: TrustState = field(default_factory=TrustState)
    device_class: str | None = None

    def refresh(self, source: OfferedFiles, pack: bytes | None, now_s: float) -> TrustState:
        self.state = TrustRefresher(self.root, device_class=self.device_class).refresh(
            self.state, source, pack, now_s
        )
        return self.state


def directive_for(release: BundleRelease, number: int = 1, **changes: Any) -> Directive:
    """A directive to deploy a released bundle to everyone."""
    values: dict[str, Any] = {
        "id": f"r{number}",
        "number": number,
        "model": release.model,
        "bundle": release.path,
        "sha256": release.sha256,
        "length": release.length,
        "percent_bp": 10_000,
    }
    return Directive(**{**values, **changes})
