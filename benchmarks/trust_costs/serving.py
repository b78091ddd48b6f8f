"""The fleet manager of the benchmark: ``python -m benchmarks.trust_costs.serving FOLDER DEVICES``.

A real one over TLS with a real database, without a broker, whose limits for strangers are out of the way. It makes a
token for each device, says in JSON where it listens and what the tokens are, and serves until its standard input ends.
"""

import asyncio
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Final

from fleet.cli.init import make_home
from fleet.config import EnrolmentConfig, GrpcConfig
from fleet.daemon import running
from fleet.home import Home
from fleet.registry.pki import init_pki
from tests.support.ephemeral import CONFIG

__all__ = ["device_name"]

_MANY: Final = 10**9


def device_name(number: int) -> str:
    return f"cam-{number:05d}"


async def _serve(folder: Path, devices: int) -> None:
    home = Home(folder)
    make_home(home, "lab", time.time())
    init_pki(home.pki, "lab", (), time.time())
    config = dataclasses.replace(
        CONFIG,
        grpc=GrpcConfig("127.0.0.1:0", tls=True),
        enrolment=EnrolmentConfig("127.0.0.1:0", per_minute=_MANY, per_peer_per_minute=_MANY),
    )
    async with running(home, config) as manager:
        assert manager.identities is not None
        assert manager.addresses is not None
        tokens = []
        for number in range(devices):
            name = device_name(number)
            made = await manager.identities.create_token(name, "camera", {}, 86_400.0)
            tokens.append(made.secret)
        said = {
            "grpc": str(manager.addresses.grpc), "enrolment": str(manager.addresses.enrolment),
            "server_ca": home.pki.server_ca.read_text(encoding="ascii"), "tokens": tokens,
        }  # fmt: skip
        print(json.dumps(said), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
