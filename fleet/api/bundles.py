"""HTTP: bundles, their pieces, and the release metadata that a releaser signs the next version of."""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from agent.trust import BundleRelease
from fleet.api.door import call_of
from fleet.api.models import (
    BundleRequest,
    Bundles,
    BundleView,
    MissingPieces,
    PieceDigests,
    PublishedBundle,
)
from fleet.api.publish import publish_bundle
from fleet.api.services import Services
from fleet.errors import NotFoundError, RequestError
from fleet.store.bundles import list_bundles

__all__ = ["decoded", "router"]

MAX_PIECE_BYTES: Final = 1024 * 1024
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

router = APIRouter(prefix="/v1", tags=["bundles"])


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


@router.get("/bundles")
def get_bundles(request: Request) -> Bundles:
    """Every published bundle, the newest first."""
    services = _services(request)
    with services.store.read() as connection:
        rows = list_bundles(connection)
    released = services.repository.releases()
    return Bundles(bundles=[_view(row, released.get(row["path"])) for row in rows])


def _view(row: Mapping[str, Any], release: BundleRelease | None) -> BundleView:
    """A stored bundle, with what its signed release says beyond it."""
    if release is None:
        return BundleView(**row)
    return BundleView(
        **row,
        attestations=list(release.attestations),
        limits=list(release.limits),
        signed_at_s=release.signed_at_s,
    )


@router.get("/attestations/{sha256}")
def get_attestation(request: Request, sha256: str) -> Response:
    """What attests the checks of a published bundle: a signed in-toto statement, as it was handed in."""
    raw = _services(request).artifacts.attestation(sha256)
    if raw is None:
        raise NotFoundError(
            f"there is no attestation {sha256[:12]}: `fleet bundle show BUNDLE` names those of a bundle"
        )
    return Response(raw, media_type="application/json")


@router.post("/bundles")
async def post_bundle(request: Request, body: BundleRequest) -> PublishedBundle:
    """Publish a bundle whose pieces have been uploaded. Repeating it changes nothing."""
    services = _services(request)
    manifest = decoded(body.manifest, "manifest")
    release = decoded(body.release, "release")
    attestations = [decoded(raw, "attestation") for raw in body.attestations]
    published = await run_in_threadpool(
        publish_bundle, services, manifest, release, call_of(request), attestations
    )
    if published.changed:
        await services.publish()
    return PublishedBundle(
        path=published.release.path,
        manifest_sha256=published.release.sha256,
        release=published.release.release,
        release_version=published.release_version,
        changed=published.changed,
    )


@router.get("/repository/release")
def get_release(
    request: Request, device_class: Annotated[str, Query(alias="class", max_length=64)] = ""
) -> Response:
    """The release metadata as it is served to devices of a class; its version is in it and in the header."""
    raw, version = _services(request).repository.release_metadata(device_class)
    return Response(raw, media_type="application/json", headers={"x-release-version": str(version)})


@router.get("/repository/root")
def get_root(request: Request) -> Response:
    """The first root: what a new device is given to trust this fleet."""
    raw = _services(request).repository.metadata("1.root.json")
    return Response(raw, media_type="application/json")


@router.post("/pieces/missing")
def post_missing(request: Request, body: PieceDigests) -> MissingPieces:
    """Which of these pieces are not here yet."""
    return MissingPieces(missing=list(_services(request).artifacts.missing(body.digests)))


@router.put("/pieces/{sha256}", status_code=204, response_class=Response)
async def put_piece(request: Request, sha256: str) -> Response:
    """Store one piece under its digest. Repeating it changes nothing."""
    if not _DIGEST.fullmatch(sha256):
        raise RequestError(f"{sha256[:80]!r} is no sha256 digest in lower-case hex")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_PIECE_BYTES:
            raise RequestError(f"piece {sha256[:12]} has more than {MAX_PIECE_BYTES} bytes")
    await run_in_threadpool(_services(request).artifacts.put, sha256, bytes(data))
    return Response(status_code=204)


def decoded(text: str, what: str) -> bytes:
    """The bytes of a field.

    Raises:
        RequestError: it is not base64; the message says which field.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{what} is not base64: {error}") from error
