"""Bodies of the HTTP API that come in, and the ones whose form others rely on."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from agent.trust.release import ATTESTATIONS_MAX

__all__ = [
    "BundleRequest",
    "BundleView",
    "Bundles",
    "DeviceDetail",
    "DeviceView",
    "Devices",
    "MissingPieces",
    "ModelView",
    "PieceDigests",
    "Problem",
    "PublishedBundle",
    "RoleRequest",
    "RoleVersions",
    "Status",
    "TakenRole",
]

MAX_DIGESTS: Final = 20_000
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Body(BaseModel):
    """A request: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PieceDigests(_Body):
    digests: list[Digest] = Field(max_length=MAX_DIGESTS)


_Attestation = Annotated[str, Field(max_length=512 * 1024)]


class BundleRequest(_Body):
    manifest: str = Field(description="manifest.json, base64", max_length=1024 * 1024)
    release: str = Field(
        description="the newly signed release metadata, base64", max_length=1024 * 1024
    )
    attestations: list[_Attestation] = Field(
        [], description="what attests the bundle's checks, base64", max_length=ATTESTATIONS_MAX
    )


class RoleRequest(_Body):
    metadata: str = Field(
        description="the signed metadata of the role, base64", max_length=1024 * 1024
    )
    companions: dict[str, str] = Field(
        {}, description="base64 metadata of other roles that come with it, by role", max_length=64
    )
    manifests: list[str] = Field(
        [], description="manifest.json of each new bundle, base64", max_length=64
    )
    attestations: list[_Attestation] = Field(
        [], description="what attests the checks of each new bundle, base64", max_length=64
    )


class Problem(BaseModel):
    error: str
    message: str


class MissingPieces(BaseModel):
    missing: list[str]


class ModelView(BaseModel):
    model: str
    version: str
    manifest_sha256: str
    rollout_id: str
    updated_s: float


class DeviceView(BaseModel):
    id: str
    device_class: str
    hardware: str
    labels: dict[str, str]
    agent_version: str
    onnxruntime_version: str
    memory_bytes: int
    disk_free_bytes: int
    cpu_count: int
    operating_system: str
    boot_id: str
    online: bool
    standing: str = "open"
    first_seen_s: float
    last_seen_s: float
    models: list[ModelView] = []


class Devices(BaseModel):
    devices: list[DeviceView]
    next: str = Field("", description="pass as `after` for the next page; empty on the last")


class DeviceDetail(DeviceView):
    trust: dict[str, Any] = Field(description="what it refused of the signed metadata")
    deployments: list[dict[str, Any]]
    windows: list[dict[str, Any]]
    events: list[dict[str, Any]]
    identity: dict[str, Any] = {}


class BundleView(BaseModel):
    path: str
    model: str
    version: str
    device_class: str
    manifest_sha256: str
    manifest_bytes: int
    size_bytes: int
    release: int
    published_s: float
    attestations: list[str] = Field([], description="digests of what attests its checks")
    limits: list[tuple[int, int]] = Field(
        [], description="how fast it may spread: seconds since it was signed, and basis points"
    )
    signed_at_s: int = Field(0, description="when its release was signed, in seconds since 1970")


class Bundles(BaseModel):
    bundles: list[BundleView]


class PublishedBundle(BaseModel):
    path: str
    manifest_sha256: str
    release: int
    release_version: int
    changed: bool = Field(description="false: it was published before")


class RoleVersions(BaseModel):
    roots: list[dict[str, Any]] = Field(description="every root, the first one first")
    versions: dict[str, int] = Field(description="version of each role")


class TakenRole(BaseModel):
    role: str
    version: int
    changed: bool = Field(description="false: it was published before")


class Status(BaseModel):
    fleet: str
    version: str
    started_s: float
    now_s: float
    devices: int
    online: int
    bundles: int
    rollouts: dict[str, int] = Field(description="rollouts by state")
    pack_version: int
    pack_bytes: int
    broker: dict[str, Any]
    ingest: dict[str, Any]
    offline_keys: list[str] = Field(
        [], description="offline keys that still lie in the fleet folder; move them away"
    )
    webhooks: dict[str, Any] = Field(description="events that wait, were given up, and whose fault")
