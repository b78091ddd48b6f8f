"""Publishing a bundle from the machine that holds the release key: what the server lacks, then the signature.

Rules kept here: only a folder that is whole is published, with models that no device refuses at sight; pieces go first,
so that what is signed can be fetched; the key never leaves this machine; being interrupted anywhere and started again
is harmless.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from tuf.api.metadata import Targets

from agent.bundle import BundleFileError, Manifest, Piece
from agent.bundle.folder import open_bundle_file, read_bundle, verify_folder
from agent.runtime.onnx_scan import scan_bundle
from fleet.claims.attestation import attestation_digest
from fleet.errors import ConflictError, RefusedError
from fleet.repository.release import ReleaseEntry, parse_release_role, read_entries, sign_release

__all__ = [
    "PieceProgress",
    "PublishRequest",
    "Published",
    "Server",
    "Uploaded",
    "publish_folder",
    "require_release",
    "upload_folder",
]

SIGN_ATTEMPTS: Final = 3
ASKED_AT_ONCE: Final = 4096

PieceProgress = Callable[[int, int], None]
"""Called with the bytes sent so far and the bytes there are to send."""


class Server(Protocol):
    """The fleet manager's HTTP API (``fleet.cli.client.FleetClient``)."""

    def post_json(self, path: str, body: object = None) -> Any: ...

    def get_bytes(self, path: str) -> bytes: ...

    def put_bytes(self, path: str, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """``release``: refuse unless the bundle becomes this release number (0: any). ``min_release``: the
    floor of the model is raised to it (0: left). ``attestations``: of the bundle's checks. ``limits``: pairs of seconds
    since the signature and basis points of the fleet that may have it by then (empty: no limit)."""

    folder: Path
    key: Path
    now_s: float
    release: int = 0
    min_release: int = 0
    attestations: tuple[bytes, ...] = ()
    limits: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Published:
    """``changed`` False: it had been published before. Sizes are of what was sent now, and of all files."""

    path: str
    manifest_sha256: str
    release: int
    changed: bool
    sent_pieces: int
    sent_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A bundle whose pieces are all at the server. Pieces and bytes are of what was sent now."""

    manifest: Manifest
    raw: bytes
    pieces: int
    size_bytes: int


def publish_folder(
    server: Server, request: PublishRequest, progress: PieceProgress = lambda _sent, _all: None
) -> Published:
    """Upload missing pieces, sign the release role with one bundle more, hand it in.

    Raises:
        BundleError: the folder is not a whole bundle, or a model in it is none that a device may run.
        ConfigError: the key cannot be read.
        FleetError: the server refused, or cannot be reached.
    """
    sent = upload_folder(server, request.folder, progress)
    answer = _hand_in(server, request, sent.manifest, sent.raw)
    return Published(
        path=answer["path"],
        manifest_sha256=answer["manifest_sha256"],
        release=int(answer["release"]),
        changed=bool(answer["changed"]),
        sent_pieces=sent.pieces,
        sent_bytes=sent.size_bytes,
        size_bytes=sent.manifest.size_bytes,
    )


def upload_folder(
    server: Server, folder: Path, progress: PieceProgress = lambda _sent, _all: None
) -> Uploaded:
    """Send the pieces that the fleet manager lacks. Nothing is signed or published by that.

    Raises:
        BundleError: the folder is not a whole bundle. FleetError: the server refused, or cannot be reached.
    """
    verify_folder(folder)
    manifest, raw = read_bundle(folder)
    scan_bundle(folder, manifest)
    missing = _missing(server, manifest.pieces())
    return Uploaded(
        manifest, raw, len(missing), _upload(server, folder, manifest, missing, progress)
    )


def _missing(server: Server, pieces: Sequence[Piece]) -> dict[str, Piece]:
    known = {piece.sha256: piece for piece in pieces}
    digests = list(known)
    found: dict[str, Piece] = {}
    for at in range(0, len(digests), ASKED_AT_ONCE):
        body = {"digests": digests[at : at + ASKED_AT_ONCE]}
        for sha256 in server.post_json("/v1/pieces/missing", body)["missing"]:
            if sha256 in known:
                found[sha256] = known[sha256]
    return found


def _upload(
    server: Server,
    folder: Path,
    manifest: Manifest,
    missing: dict[str, Piece],
    progress: PieceProgress,
) -> int:
    total = sum(piece.size for piece in missing.values())
    sent = 0
    progress(sent, total)
    for sha256, data in _contents(folder, manifest, set(missing)):
        server.put_bytes(f"/v1/pieces/{sha256}", data)
        sent += len(data)
        progress(sent, total)
    return sent


def _contents(folder: Path, manifest: Manifest, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Each wanted piece once. ``wanted`` is emptied."""
    for file in manifest.files:
        at = 0
        with open_bundle_file(folder, file.name) as stream:
            for piece in file.pieces:
                if piece.sha256 in wanted:
                    wanted.discard(piece.sha256)
                    stream.seek(at)
                    data = stream.read(piece.size)
                    if hashlib.sha256(data).hexdigest() != piece.sha256:
                        raise BundleFileError(
                            f"bundle {folder}: {file.name!r} changed while it was published; "
                            f"build the bundle again"
                        )
                    yield piece.sha256, data
                at += piece.size


def _hand_in(server: Server, request: PublishRequest, manifest: Manifest, raw: bytes) -> Any:
    entry = ReleaseEntry.of(
        manifest,
        min_release=request.min_release,
        attestations=tuple(attestation_digest(raw) for raw in request.attestations),
        limits=request.limits,
    )
    for attempt in range(1, SIGN_ATTEMPTS + 1):
        current = server.get_bytes(f"/v1/repository/release?class={manifest.device_class}")
        signed = sign_release(current, request.key, entry, raw, request.now_s)
        require_release(manifest, parse_release_role(signed).signed, request.release)
        body = {
            "manifest": base64.b64encode(raw).decode(),
            "release": base64.b64encode(signed).decode(),
            "attestations": [base64.b64encode(raw).decode() for raw in request.attestations],
        }
        try:
            return server.post_json("/v1/bundles", body)
        except ConflictError:
            # Somebody published between our reading and our handing in: sign on top of theirs.
            if attempt == SIGN_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def require_release(manifest: Manifest, release_role: Targets, wanted: int) -> int:
    """The release number that a bundle gets.

    Raises:
        RefusedError: it is not the number that was asked for (0: any).
    """
    release = read_entries(release_role)[manifest.path].release
    if wanted not in (0, release):
        raise RefusedError(
            f"{manifest.path} is release {release} of {manifest.model} for class "
            f"{manifest.device_class}, not {wanted}: somebody has published in between, "
            f"or the number is wrong. Nothing was published"
        )
    return release
