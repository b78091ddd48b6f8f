"""What attests the checks of new bundles, at every door through which a release role comes in.

Rules kept here: each bundle that a role would release anew is asked for, whatever it was handed in as; what is kept
has been checked first, and is durable before the role is published.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from agent.trust import BundleRelease
from fleet.artifacts.folder import FolderArtifacts
from fleet.claims.attestation import attestation_digest
from fleet.repository import Repository
from fleet.repository.claims import Attestable, claims_rule, require_attested
from fleet.repository.release import parse_release_role, read_entries
from fleet.repository.roles import is_release_role

__all__ = ["keep_attestations", "new_releases"]


class Attested(Protocol):
    """Where bundles are published."""

    @property
    def repository(self) -> Repository: ...

    @property
    def artifacts(self) -> FolderArtifacts: ...


def new_releases(repository: Repository, files: Mapping[str, bytes]) -> list[BundleRelease]:
    """Bundles that these roles would release and that are not released yet. ``files``: by role, of any kind.

    Raises:
        RefusedError: a release role cannot be read.
    """
    known = repository.releases()
    return [
        release
        for role, raw in files.items()
        if is_release_role(role)
        for path, release in read_entries(parse_release_role(raw).signed).items()
        if path not in known
    ]


def keep_attestations(
    place: Attested, files: Mapping[str, bytes], offered: Iterable[bytes]
) -> None:
    """Check what attests the bundles that these roles would release, and keep it.

    Args:
        place: where.
        files: what is to be published, by role.
        offered: attestations that came along; those that lie here already need not.

    Raises:
        RefusedError: one is missing or does not hold; nothing was kept.
    """
    rule = claims_rule(place.repository.generation.targets("targets"))
    by_digest = {attestation_digest(raw): raw for raw in offered}
    kept: dict[str, bytes] = {}
    for release in new_releases(place.repository, files):
        for digest in release.attestations:
            raw = by_digest.get(digest) or place.artifacts.attestation(digest)
            if raw is not None:
                kept[digest] = raw
        require_attested(rule, Attestable.of(release), kept.values())
    for raw in kept.values():
        place.artifacts.put_attestation(raw)
