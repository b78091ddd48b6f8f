"""Bundles of random bytes, published over HTTP as a publisher does: for worlds in which no model is ever loaded."""

import base64
import hashlib
import random
import time
from dataclasses import dataclass

import httpx

from agent.bundle import (
    PIECE_BYTES,
    BundleFile,
    Manifest,
    Objectives,
    Piece,
    Stage,
    TensorSpec,
    manifest_sha256,
)
from fleet.repository import ReleaseEntry, key_path, sign_release
from tests.support.fleet import FleetHost

__all__ = ["Published", "publish_random"]


@dataclass(frozen=True, slots=True)
class Published:
    path: str
    sha256: str
    size_bytes: int


def publish_random(
    host: FleetHost,
    version: str,
    *,
    model: str = "vad",
    device_class: str = "edge",
    size_bytes: int = 300_000,
    objectives: Objectives | None = None,
) -> Published:
    """Publish a bundle of one file that is no model, and say what it is called."""
    # The same name has the same bytes, so the same devices are in each stage whenever a test runs.
    data = random.Random(f"{device_class}/{model}-{version}").randbytes(size_bytes)
    parts = [data[at : at + PIECE_BYTES] for at in range(0, size_bytes, PIECE_BYTES)]
    pieces = {hashlib.sha256(part).hexdigest(): part for part in parts}
    spec = TensorSpec("x", "FP32", (1,))
    manifest = Manifest(
        model=model,
        version=version,
        device_class=device_class,
        created_s=1,
        files=(
            BundleFile(
                "m.onnx",
                size_bytes,
                hashlib.sha256(data).hexdigest(),
                tuple(Piece(digest, len(part)) for digest, part in pieces.items()),
            ),
        ),
        stages=(Stage("main", "m.onnx", (("x", "x"),), (("y", "y"),)),),
        inputs=(spec,),
        outputs=(TensorSpec("y", "FP32", (1,)),),
        objectives=objectives or Objectives(latency_ms=50.0, probation_s=0.5),
    )
    raw = manifest.to_bytes()
    headers = {"authorization": f"Bearer {host.token}"}
    with httpx.Client(base_url=host.server, timeout=90, headers=headers) as client:
        for digest, part in pieces.items():
            client.put(f"/v1/pieces/{digest}", content=part).raise_for_status()
        current = client.get("/v1/repository/release").raise_for_status().content
        release = sign_release(
            current, key_path(host.home, "release"), ReleaseEntry.of(manifest), raw, time.time()
        )
        body = {
            "manifest": base64.b64encode(raw).decode(),
            "release": base64.b64encode(release).decode(),
        }
        client.post("/v1/bundles", json=body).raise_for_status()
    return Published(manifest.path, manifest_sha256(raw), size_bytes)
