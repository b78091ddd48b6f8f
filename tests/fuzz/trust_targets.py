"""What a device reads before, and after, it has verified signatures: the pack, signed metadata, directives, releases.

The attacker of ``pack`` and ``pack-inside`` is the broker, who has no key. The one of ``signed``, ``directive``,
``release`` and ``emergency`` has stolen the keys of the role, so that what it says reaches every check behind the
signature. Each goes the device's whole way: refresh, view, decision.
"""

import gzip
import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from agent.nesting import is_deeper
from agent.trust import (
    CurrentModel,
    DeviceFacts,
    RefusedMetadataError,
    TrustState,
    World,
    decide_in,
)
from agent.trust.emergency import body_of
from agent.trust.errors import MalformedError
from agent.trust.limits import TrustLimits
from agent.trust.pack import encode_pack, open_pack
from agent.trust.refresh import SIGNED_AT_FIELD, TrustRefresher
from agent.trust.refusals import CLIENT_ERRORS
from agent.trust.status import TrustStatus
from agent.trust_view import read_view
from tests.fuzz.holes import Target, check_message, refusals
from tests.support.signed_fleet import DAY_S, OfferedFiles, SignedFleet, directive_for

__all__ = ["ROLES", "TrustBed"]

FACTS: Final = DeviceFacts(
    "cam-7", "cam", "x86_64", {"site": "north"}, "0.1.0", "1.20.1", "cpu", utc_offset_minutes=90
)
ROLES: Final = ("timestamp", "snapshot", "rollout", "targets", "release", "emergency", "root")
"""In the order of ``signed``'s first byte."""
_DIGEST: Final = "ab" * 32


def _key(number: int) -> CryptoSigner:
    """The same in each run, so that a run is repeatable."""
    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(bytes((number,)) * 32))


class _OneRoot(OfferedFiles):
    """An altered root is offered as the next one, and not as those after it."""

    def get_metadata(self, name: str) -> bytes | None:
        if name.endswith(".root.json") and name != "2.root.json":
            return self._repository.metadata(name)
        return super().get_metadata(name)


class TrustBed:
    """A fleet that has signed one of everything, and a device that has accepted it."""

    def __init__(self, folder: Path, limits: TrustLimits | None = None) -> None:
        self._limits = limits or TrustLimits()
        numbers = itertools.count()
        keys = map(_key, numbers)
        with mock.patch.object(CryptoSigner, "generate_ed25519", side_effect=keys):
            self.fleet = SignedFleet(folder)
        self.release = self.fleet.publish(
            hardware=("x86_64",), limits=((0, 100), (3_600, 10_000)), agent=">=0.1", onnxruntime=">=1.20,<2"
        )  # fmt: skip
        self.directive = replace(
            directive_for(self.release, selector=(("site", "north"),), mode="ab", beside_bp=5_000),
            routing_key="customer", traffic_bp=2_000, from_bp=100, ramp_s=3_600, ramp_doublings=4,
            open_hours=("mon-fri 22:00-04:00", "sat 00:00-23:59"), exclude=(("id", "x"),),
            stopped=("cam/cuda",), retries=2,
        )  # fmt: skip
        first = self.fleet.direct(directive_for(self.release))
        self._refresher = TrustRefresher(self.fleet.root, limits, device_class="cam")
        self._source = self.fleet.offered()
        self.state = self._refresher.refresh(TrustState(), self._source, first, self.fleet.now_s)
        self.pack = self.fleet.direct(self.directive)
        self.newest = self._refresher.refresh(self.state, self._source, self.pack, self.fleet.now_s)
        self._now_s = self.fleet.now_s

    # --- without keys -----------------------------------------------------------------------------

    def feed_pack(self, data: bytes) -> None:
        """The retained message."""
        with refusals(RefusedMetadataError):
            self._use(self._refresher.refresh(self.state, self._source, data, self._now_s))

    def feed_pack_inside(self, data: bytes) -> None:
        """What the retained message unpacks to."""
        self.feed_pack(gzip.compress(data, 1, mtime=0))

    def feed_offered(self, role: str, data: bytes) -> None:
        """A metadata file that the network brings under a valid pack."""
        with refusals(RefusedMetadataError):
            source = self.fleet.offered(**{role: data})
            self._use(self._refresher.refresh(TrustState(), source, self.pack, self._now_s))

    # --- with stolen keys -------------------------------------------------------------------------

    def feed_signed(self, data: bytes) -> None:
        """``data``: a number of ``ROLES``, and the JSON that the role's own key signs."""
        try:
            signed = json.loads(data[1:])
        except (ValueError, RecursionError):
            signed = None  # nothing that a key could sign; it is offered all the same
        role = ROLES[data[0] % len(ROLES)] if data else ROLES[0]
        raw = self._signed_by(role, signed, data[1:])
        pack, changes = self._around(role, raw, signed)
        with refusals(RefusedMetadataError):
            source = _OneRoot(
                self.fleet.repository, {f"{name}.json": file for name, file in changes.items()}
            )
            self._use(self._refresher.refresh(self.state, source, pack, self._now_s))

    def feed_directive(self, data: bytes) -> None:
        """``data``: the ``custom`` of a directive, JSON."""
        self._feed_custom("rollout", self.directive.target_path, data, self._directive_target())

    def feed_release(self, data: bytes) -> None:
        """``data``: the ``custom`` of a release, JSON."""
        target = f'"length":{self.release.length},"hashes":{{"sha256":"{self.release.sha256}"}}'
        self._feed_custom("release", self.release.path, data, target)

    def feed_emergency(self, data: bytes) -> None:
        """``data``: the ``custom`` of an entry of the emergency role, JSON."""
        try:
            body = body_of(json.loads(data))
        except (ValueError, RecursionError, TypeError, AttributeError):
            body = data
        target = f'"length":{len(body)},"hashes":{{"sha256":"{hashlib.sha256(body).hexdigest()}"}}'
        self._feed_custom("emergency", "rollouts/fleet/emergency", data, target)

    def _directive_target(self) -> str:
        return f'"length":{self.directive.length},"hashes":{{"sha256":"{self.directive.sha256}"}}'

    def _feed_custom(self, role: str, path: str, data: bytes, target: str) -> None:
        """As if the role's key had signed it: verifying is left out, for it is slow and ``signed`` has it."""
        signed = json.loads(self.newest.files[f"{role}.json"])["signed"]
        signed["targets"] = {path: {"here": 1}}
        text = json.dumps({"signed": signed, "signatures": []}).encode()
        raw = text.replace(b'{"here": 1}', b'{"custom":' + data + b"," + target.encode() + b"}")
        if is_deeper(raw, self._limits.levels) or len(raw) > self._limits.targets_bytes:
            return
        try:
            Metadata.from_bytes(raw).signed_bytes  # noqa: B018 (read for its errors)
        except CLIENT_ERRORS:
            return  # the TUF client would not let it in
        state = replace(self.newest, files={**self.newest.files, f"{role}.json": raw})
        self._use(state.with_floors_raised(read_view(state).releases.values()))

    # --- the device -------------------------------------------------------------------------------

    def _use(self, state: TrustState) -> None:
        """What the device does next with what it has accepted. Raises where there is a hole."""
        view = read_view(state)
        world = World(
            view.releases, FACTS, state.floors_for(FACTS.device_class),
            state.trusted_now_s(self._now_s), view.emergency, view.expires_s,
        )  # fmt: skip
        holds = CurrentModel("m", _DIGEST, self.release.sha256)
        decisions = decide_in(world, view.directives, {"m": holds})
        decisions += decide_in(world, view.directives, {})
        for decision in decisions:
            check_message(decision.text)
        with refusals(MalformedError):
            for why in view.unreadable:
                raise MalformedError(why)
        TrustStatus().with_notices(view.unreadable)

    def _signed_by(self, role: str, signed: Any, otherwise: bytes) -> bytes:
        try:
            told = encode_canonical(signed).encode()
            key = self.fleet.key(role)
            signature = key.sign(told).to_dict()
        except Exception:  # noqa: BLE001 (it has no canonical form, so nobody can sign it)
            return otherwise
        return json.dumps({"signatures": [signature], "signed": signed}).encode()

    def _around(
        self, role: str, raw: bytes, signed: Any
    ) -> tuple[bytes | None, dict[str, bytes | None]]:
        """A pack (None: the whole repository is offered instead), and the files that are offered with it."""
        version = signed.get("version") if isinstance(signed, dict) else None
        files = open_pack(self.pack, TrustLimits())
        held = {name: json.loads(file)["signed"] for name, file in files.items()}
        names = {name.removesuffix(".json").rpartition(".")[2]: name for name in files}
        if role in ("timestamp", "root"):
            return None, {role: raw}
        if not isinstance(version, int) or not 0 < version < 2**31:
            version = 1
        if role == "snapshot":
            raw_snapshot, number = raw, version
        else:
            snapshot = held[names["snapshot"]]
            number = snapshot["version"] = snapshot["version"] + 1
            snapshot["meta"][f"{role}.json"] = _meta(version, raw)
            raw_snapshot = self._signed_by("snapshot", snapshot, b"")
        timestamp = held["timestamp.json"]
        timestamp["version"] += 1
        timestamp[SIGNED_AT_FIELD] = int(self._now_s)
        timestamp["meta"] = {"snapshot.json": _meta(number, raw_snapshot)}
        made = {
            f"{number}.snapshot.json": raw_snapshot,
            "timestamp.json": self._signed_by("timestamp", timestamp, b""),
        }
        rollout = (
            {f"{version}.rollout.json": raw}
            if role == "rollout"
            else {names["rollout"]: files[names["rollout"]]}
        )
        offered = {role: raw} if role in ("targets", "release", "emergency") else {}
        return encode_pack({**made, **rollout}), dict(offered)

    # --- seeds ------------------------------------------------------------------------------------

    def signed_seed(self, role: str) -> dict[str, Any]:
        """What the role has signed, with a version that is newer."""
        raw = self.newest.files.get(f"{role}.json", self.fleet.root)
        signed: dict[str, Any] = json.loads(raw)["signed"]
        signed["version"] += 1
        return signed

    @property
    def emergency_seed(self) -> dict[str, Any]:
        return {
            "id": "fleet", "blocked": {_DIGEST: "it hangs"}, "lifted": [self.release.sha256],
            "signed_at_s": int(self._now_s - DAY_S),
        }  # fmt: skip

    def targets(self) -> list[Target]:
        """Everything of this module."""
        inside = gzip.decompress(self.pack)
        numbered = [
            bytes((number,)) + json.dumps(self.signed_seed(role)).encode()
            for number, role in enumerate(ROLES)
        ]
        return [
            Target("pack", (self.pack,), self.feed_pack),
            Target("pack-inside", (inside,), self.feed_pack_inside),
            Target("signed", numbered, self.feed_signed),
            Target("directive", (_json(self.directive.to_json()),), self.feed_directive),
            Target("release", (_json(self.release.to_json()),), self.feed_release),
            Target("emergency", (_json(self.emergency_seed),), self.feed_emergency),
        ]


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _meta(version: int, raw: bytes) -> dict[str, Any]:
    return {
        "version": version, "length": len(raw), "hashes": {"sha256": hashlib.sha256(raw).hexdigest()},
    }  # fmt: skip
