"""Publishing a bundle with the keys that are here, or asking for the signatures of those that are not.

Rules kept here: one key that is enough signs on top of whatever was published meanwhile; where several must sign,
the bundle's content is uploaded, and what they are to sign is made once and travels as a file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuf.api.metadata import Metadata, Targets

from agent.bundle import Manifest, manifest_sha256
from agent.bundle.folder import read_bundle
from fleet.artifacts.publish import (
    PieceProgress,
    Published,
    PublishRequest,
    Uploaded,
    publish_folder,
    require_release,
    upload_folder,
)
from fleet.claims.attestation import attestation_digest
from fleet.cli.client import FleetClient
from fleet.cli.roles_source import ServerRoles, hand_in
from fleet.cli.speed_limits import SpeedLimits
from fleet.errors import NotFoundError
from fleet.repository.claims import Attestable, claims_rule, require_attested
from fleet.repository.generation import role_for
from fleet.repository.keys import load_key
from fleet.repository.release import ReleaseEntry, next_release, read_entries
from fleet.repository.request import LIFE_S, Chain, SigningRequest
from fleet.repository.request_rules import needs_of, with_signature
from fleet.repository.roles import to_bytes

__all__ = ["Wanted", "publish_or_ask"]

_ONE: Final = 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be published; as :class:`fleet.artifacts.publish.PublishRequest`, with any number of keys."""

    folder: Path
    keys: tuple[Path, ...]
    now_s: float
    release: int = 0
    min_release: int = 0
    attestations: tuple[bytes, ...] = ()
    limits: SpeedLimits = ()


def publish_or_ask(
    client: FleetClient, wanted: Wanted, password: bytes | None, progress: PieceProgress
) -> Published | SigningRequest:
    """Publish, or the request for the signatures that are still needed.

    Raises:
        BundleError: the folder is not a whole bundle.
        RefusedError: the fleet asks for an attestation and there is none, or one does not hold; nothing was sent.
        ConfigError: a key cannot be read. NotFoundError: no role approves bundles of this class.
        FleetError: the server refused, or cannot be reached.
    """
    manifest, raw = read_bundle(wanted.folder)
    roles = ServerRoles(client)
    targets = roles.chain("targets").targets.signed
    role = role_for(targets, manifest.path)
    if role is None:
        raise NotFoundError(
            f"no release role speaks for class {manifest.device_class}: `fleet key add-class "
            f"{manifest.device_class}` makes one"
        )
    if not _is_released(roles, role, manifest, raw):
        _require_attested(targets, manifest, raw, wanted)
    threshold = targets.get_delegated_role(role).threshold
    if threshold == _ONE and len(wanted.keys) == _ONE and password is None:
        request = PublishRequest(
            wanted.folder,
            wanted.keys[0],
            wanted.now_s,
            wanted.release,
            wanted.min_release,
            wanted.attestations,
            wanted.limits,
        )
        return publish_folder(client, request, progress)
    signers = [load_key(path, password) for path in wanted.keys]
    sent = upload_folder(client, wanted.folder, progress)
    chain = roles.chain(role)
    present = chain.base.signed.targets.get(sent.manifest.path)
    if present is not None and present.hashes.get("sha256") == manifest_sha256(sent.raw):
        return _published(sent, chain.base, changed=False)
    asked = _request(role, chain, sent, wanted)
    for signer in signers:
        asked = with_signature(asked, signer)
    if any(need.left for need in needs_of(asked)):
        return asked
    return _published(sent, asked.metadata, changed=hand_in(roles, asked))


def _entry(manifest: Manifest, wanted: Wanted) -> ReleaseEntry:
    digests = tuple(attestation_digest(raw) for raw in wanted.attestations)
    return ReleaseEntry.of(
        manifest, min_release=wanted.min_release, limits=wanted.limits, attestations=digests
    )


def _is_released(roles: ServerRoles, role: str, manifest: Manifest, raw: bytes) -> bool:
    """Whether this very bundle is released already: nothing is asked of it again."""
    present = roles.chain(role).base.signed.targets.get(manifest.path)
    return present is not None and present.hashes.get("sha256") == manifest_sha256(raw)


def _require_attested(targets: Targets, manifest: Manifest, raw: bytes, wanted: Wanted) -> None:
    """Refuse before anything is sent or signed what the fleet manager would refuse."""
    named = _entry(manifest, wanted).attestations
    about = Attestable(manifest.path, manifest_sha256(raw), named)
    require_attested(claims_rule(targets), about, wanted.attestations)


def _request(role: str, chain: Chain, sent: Uploaded, wanted: Wanted) -> SigningRequest:
    manifest = sent.manifest
    entry = _entry(manifest, wanted)
    following = next_release(to_bytes(chain.base), entry, sent.raw, wanted.now_s)
    require_release(manifest, following.signed, wanted.release)
    created_s = float(int(wanted.now_s))
    return SigningRequest(
        role,
        following,
        chain,
        created_s,
        created_s + LIFE_S,
        manifests={manifest.path: sent.raw},
        attestations={manifest.path: wanted.attestations} if wanted.attestations else {},
    )


def _published(sent: Uploaded, role: "Metadata[Targets]", *, changed: bool) -> Published:
    release = read_entries(role.signed)[sent.manifest.path]
    return Published(
        path=release.path,
        manifest_sha256=release.sha256,
        release=release.release,
        changed=changed,
        sent_pieces=sent.pieces,
        sent_bytes=sent.size_bytes,
        size_bytes=sent.manifest.size_bytes,
    )
