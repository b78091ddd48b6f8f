"""Regenerate the protobuf modules beside their .proto files: ``python -m protos.generate [OUT_DIR]``.

Needs grpcio-tools (the ``dev`` extra). The result is committed; a test regenerates it and compares.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(out_dir: Path) -> int:
    """Write the modules of every .proto under ``out_dir``; return protoc's exit code."""
    from grpc_tools import protoc

    sources = sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / "protos").glob("*.proto")
    )
    arguments = [
        "protoc",
        f"--proto_path={ROOT}",
        f"--python_out={out_dir}",
        f"--pyi_out={out_dir}",
        f"--grpc_python_out={out_dir}",
        *sources,
    ]
    code = int(protoc.main(arguments))
    # A file without a service needs no gRPC module.
    for path in (out_dir / "protos").glob("*_pb2_grpc.py"):
        if "Stub" not in path.read_text(encoding="utf-8"):
            path.unlink()
    return code


if __name__ == "__main__":
    sys.exit(generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
