"""A production fleet folder whose offline keys lie with their holders, and requests that travel between them."""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from agent.trust import BundleRelease
from fleet.repository import ReleaseEntry, Repository, init_repository
from fleet.repository.keys import load_key, offline_key_path
from fleet.repository.release import next_release
from fleet.repository.request import LIFE_S, Chain, SigningRequest, chain_of
from fleet.repository.request_rules import with_signature
from fleet.repository.roles import production_roles, release_role, to_bytes
from tests.support.signed_fleet import START_S, OfferedFiles, raw_manifest

__all__ = ["ProductionFleet"]


@dataclass
class ProductionFleet:
    """Thresholds as ``fleet init --production`` makes them, for the classes camera and gateway."""

    home: Path
    now_s: float = START_S
    manifests: dict[str, bytes] = field(default_factory=dict)
    root: bytes = b""

    def __post_init__(self) -> None:
        plan = production_roles(["camera", "gateway"])
        self.root = init_repository(self.home, fleet_name="lab", now_s=self.now_s, plan=plan)
        self.repository = Repository(self.home, self.manifests.get)

    def key(self, role: str, number: int) -> CryptoSigner:
        return load_key(offline_key_path(self.home, role, number))

    def chain(self, role: str) -> Chain:
        return chain_of(role, self.repository.roots(), self.repository.role_metadata)

    def release_request(
        self, device_class: str = "camera", version: str = "1", model: str = "m"
    ) -> SigningRequest:
        raw = raw_manifest(model, version, device_class)
        entry = ReleaseEntry(model=model, version=version, device_class=device_class)
        chain = self.chain(release_role(device_class))
        following = next_release(to_bytes(chain.base), entry, raw, self.now_s)
        return self.request(
            release_role(device_class), following, chain, manifests={entry.path: raw}
        )

    def request(
        self, role: str, following: Metadata[Any], chain: Chain | None = None, **more: Any
    ) -> SigningRequest:
        held = chain or self.chain(role)
        return SigningRequest(role, following, held, self.now_s, self.now_s + LIFE_S, **more)

    def signed(self, request: SigningRequest, *numbers: int) -> SigningRequest:
        """The request with signatures of the role's keys of these numbers."""
        for number in numbers:
            request = with_signature(request, self.key(request.role, number))
        return request

    def take(self, request: SigningRequest) -> int:
        self.manifests |= {sha256(raw).hexdigest(): raw for raw in request.manifests.values()}
        companions = {role: to_bytes(one) for role, one in request.companions.items()}
        raw = to_bytes(request.metadata)
        return self.repository.accept(request.role, raw, self.now_s, companions=companions)

    def publish(self, device_class: str = "camera", version: str = "1") -> BundleRelease:
        self.take(self.signed(self.release_request(device_class, version), 1, 2))
        return self.repository.releases()[f"bundles/{device_class}/m-{version}"]

    def offered(self, **changes: bytes | None) -> OfferedFiles:
        return OfferedFiles(self.repository, {f"{role}.json": raw for role, raw in changes.items()})
