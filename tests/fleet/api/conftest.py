"""A running fleet manager in this process, on ports of its own, without a broker."""

import base64
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from fleet.cli.init import make_home
from fleet.daemon import FleetManager, running
from fleet.home import Home
from fleet.repository import ReleaseEntry, key_path, sign_release
from protos import device_pb2_grpc
from tests.support.ephemeral import CONFIG
from tests.support.signed_fleet import raw_manifest


@dataclass
class Lab:
    """A fleet manager, and clients as people and devices have them."""

    manager: FleetManager
    http: httpx.AsyncClient
    devices: Any

    async def bundle_body(self, version: str = "1", note: str = "") -> dict[str, str]:
        """A request to publish ``m`` in ``version``: signed, its one piece uploaded."""
        raw = raw_manifest("m", version, "edge", note)
        piece = f"m {version} {note}".encode()
        done = await self.http.put(f"/v1/pieces/{sha256(piece).hexdigest()}", content=piece)
        assert done.status_code == 204, done.text
        return await self.signed_body(raw, version)

    async def signed_body(self, raw: bytes, version: str) -> dict[str, str]:
        current = (await self.http.get("/v1/repository/release")).content
        entry = ReleaseEntry(model="m", version=version, device_class="edge")
        key = key_path(self.manager.home.path, "release")
        release = sign_release(current, key, entry, raw, self.manager.services.now_s())
        return {"manifest": _base64(raw), "release": _base64(release)}


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "fleet")
    make_home(made, "lab", time.time())
    return made


@pytest.fixture
async def lab(home: Home) -> AsyncIterator[Lab]:
    async with running(home, CONFIG) as manager:
        assert manager.addresses is not None
        channel = grpc.aio.insecure_channel(str(manager.addresses.grpc))
        stub: Any = device_pb2_grpc.DeviceServiceStub
        base = f"http://{manager.addresses.http}"
        headers = {"authorization": f"Bearer {home.local_token.read_text().strip()}"}
        async with httpx.AsyncClient(base_url=base, timeout=90, headers=headers) as client:
            yield Lab(manager, client, stub(channel))
        await channel.close()
