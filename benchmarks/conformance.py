"""The Open Inference Protocol's conformance as a table: ``python -m benchmarks.conformance [--grpc-front grpcio]``.

Every data type goes through a model that echoes it, in every way that the protocol's public client (``tritonclient``,
unmodified) has; every error is provoked over both transports. Ends with 1 when a cell is not as it should be.
"""

import argparse
import asyncio
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tritonclient.utils import InferenceServerException

from tests.support.conformance import (
    CLIENTS,
    DTYPES,
    WAYS,
    Client,
    EchoServer,
    Places,
    batch,
    echo,
    plain,
)
from tests.support.conformance_errors import ERRORS, ErrorCase, failing_bundle
from tests.support.onnx_models import BundleMaker


async def _echoed(places: Places, way: str, dtype: str) -> str:
    sent = batch(dtype)
    try:
        got = await echo(places, way, dtype, sent)
    except Exception as error:  # noqa: BLE001 any failure is a cell of the table
        return f"FAILED: {error}"
    same = got.array.dtype == sent.dtype and np.array_equal(plain(got.array), sent)
    return "ok" if same and got.id == "r-1" else "DIFFERS"


async def _refused(client: Client, case: ErrorCase) -> str:
    try:
        await case.provoke(client)
    except InferenceServerException as error:
        good = error.status() == case.status(client) and case.says in error.message()
        return "ok" if good else f"FAILED: {error}"
    return "FAILED: was answered"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


async def _table(grpc_front: str) -> list[str]:
    lines = [
        f"tritonclient {version('tritonclient')}, onnxruntime {version('onnxruntime')}, "
        f"gRPC by {grpc_front} (grpcio {version('grpcio')} in the clients), uvicorn {version('uvicorn')}",
        "",
        _row(["data type", *WAYS]),
        _row(["---"] * (len(WAYS) + 1)),
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with EchoServer(folder, grpc_front) as server:
            await server.serve(failing_bundle(folder / "gather"))
            candidate = BundleMaker(model="candidate").write(folder / "candidate")
            await server.server.load(str(candidate.path), candidate.sha256)
            for dtype in DTYPES:
                cells = [await _echoed(server.places, way, dtype) for way in WAYS]
                lines.append(_row([dtype, *cells]))
            lines += ["", _row(["error", "gRPC", "HTTP", *CLIENTS]), _row(["---"] * 7)]
            for case in ERRORS:
                cells = []
                for kind in CLIENTS:
                    places = server.places
                    url = places.http if kind.startswith("http") else places.grpc
                    async with Client(kind, url) as client:
                        cells.append(await _refused(client, case))
                lines.append(_row([case.name, case.grpc, str(case.http), *cells]))
    return lines


def main() -> int:
    """Print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grpc-front", choices=("http2", "grpcio"), default="http2")
    lines = asyncio.run(_table(parser.parse_args().grpc_front))
    sys.stdout.write("\n".join(lines) + "\n")
    return int(any("FAILED" in line or "DIFFERS" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
