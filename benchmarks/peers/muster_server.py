"""``python -m benchmarks.peers.muster_server BUNDLE SHA256 GRPC_PORT REST_PORT``: the agent's model server.

The real child process, started and told what to serve as the agent does it. Prints its process id, stops when standard
input ends. REST_PORT 0: without the REST front end.
"""

import asyncio
import json
import sys
from typing import Any

from agent.adapters import model_server
from agent.bundle.folder import read_bundle

REST_FRONT: Any = getattr(model_server, "OtherFronts", None)
"""None in a version that speaks gRPC alone."""


async def serve() -> None:
    """Serve until standard input ends."""
    bundle, sha256, grpc_port, rest_port = sys.argv[1:]
    manifest, _ = read_bundle(bundle)
    more = {}
    if REST_FRONT is not None and rest_port != "0":
        more["fronts"] = REST_FRONT(http=f"127.0.0.1:{rest_port}")
    server = model_server.ProcessModelServer(f"127.0.0.1:{grpc_port}", **more)
    async with server:
        await server.load(bundle, sha256)
        await server.activate(manifest.model, sha256)
        print(json.dumps({"pid": server.state.pid}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
