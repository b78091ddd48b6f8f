"""What a device reads of a bundle: the manifest, and the stream of its pieces."""

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from agent.adapters.piece_store import FilePieceStore
from agent.bundle import (
    BundleFile,
    GoldenCase,
    GoldenOutput,
    GoldenTensor,
    Manifest,
    ManifestError,
    Objectives,
    Observe,
    Piece,
    Requirements,
    Stage,
    TensorSpec,
    parse_manifest,
)  # fmt: skip
from agent.delivery import FetchLimits, FetchPorts, PieceFetch, run_inline
from agent.errors import LinkError
from agent.ports import PieceChunk, PieceRange
from agent.trust import BundleRelease
from agent.trust.errors import ManifestMismatchError
from agent.trust.manifest import verify_manifest
from protos import device_pb2
from tests.fuzz.holes import Target, refusals

__all__ = [
    "CONTENTS",
    "PIECES",
    "PieceBed",
    "feed_manifest",
    "manifest_seed",
    "manifest_target",
    "script",
]


# --- manifest -------------------------------------------------------------------------------------


def manifest_seed() -> Manifest:
    """One with everything that a manifest can have."""
    pieces = (Piece("a" * 64, 262_144), Piece("b" * 64, 100))
    x = GoldenTensor("golden/x.bin", "FP32", (2, 4))
    y = GoldenTensor("golden/y.bin", "INT64", (2, 1))
    return Manifest(
        model="m", version="1", device_class="cam", created_s=1_800_000_000,
        files=(
            BundleFile("model.onnx", 262_244, "c" * 64, pieces),
            BundleFile("golden/x.bin", 32, "d" * 64, (Piece("d" * 64, 32),)),
            BundleFile("golden/y.bin", 16, "e" * 64, (Piece("e" * 64, 16),)),
        ),
        stages=(Stage("main", "model.onnx", (("x", "in"),), (("out", "y"),)),),
        inputs=(TensorSpec("x", "FP32", (-1, 4), -1.0, 1.0),),
        outputs=(TensorSpec("y", "INT64", (-1, 1), labels=("cat", "dog")),),
        golden=(GoldenCase("one", (("x", x),), (GoldenOutput("y", y, 0.0, 0.001),)),),
        objectives=Objectives(),
        requirements=Requirements(("cam",), ("x86_64",), 10**8, ">=1.20", ">=0.1,<2"),
        parameters={"threshold": 0.5, "name": "x", "top": 3, "on": True},
        observe=Observe("y", (), "", 0.0),
    )  # fmt: skip


_RELEASE: Final = BundleRelease(
    path="bundles/cam/m-1", sha256="", length=0, model="m", version="1", device_class="cam"
)


def feed_manifest(data: bytes) -> None:
    """As the device does, whose offline role has signed these very bytes."""
    release = replace(_RELEASE, sha256=hashlib.sha256(data).hexdigest(), length=len(data))
    with refusals(ManifestError, ManifestMismatchError):
        manifest = verify_manifest(release, data)
        assert parse_manifest(manifest.to_bytes()) == manifest
        manifest.pieces()


def manifest_target() -> Target:
    return Target("manifest", (manifest_seed().to_bytes(),), feed_manifest)


# --- pieces ---------------------------------------------------------------------------------------

CONTENTS: Final = tuple(bytes((number,)) * (700 + number) for number in range(5))
_BY_DIGEST: Final[Mapping[str, bytes]] = {
    hashlib.sha256(data).hexdigest(): data for data in CONTENTS
}
PIECES: Final = tuple(Piece(digest, len(data)) for digest, data in _BY_DIGEST.items())
LIMITS: Final = FetchLimits(batch_pieces=3)
_LENGTH: Final = struct.Struct(">H")
_ENDS, _BREAKS = 0xFFFF, 0xFFFE


def script(attempts: Sequence[Sequence[bytes]]) -> bytes:
    """Streams of messages as bytes: each message after its length, and what ends a stream."""
    parts = []
    for messages in attempts:
        parts += [_LENGTH.pack(len(message)) + message for message in messages]
        parts.append(_LENGTH.pack(_ENDS))
    return b"".join(parts)


def _attempts(data: bytes) -> list[list[bytes | None]]:
    """Of a script; None is a stream that breaks."""
    attempts: list[list[bytes | None]] = [[]]
    at = 0
    while at + _LENGTH.size <= len(data):
        [size] = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if size in (_ENDS, _BREAKS):
            attempts[-1] += [None] * (size == _BREAKS)
            attempts.append([])
            continue
        attempts[-1].append(data[at : at + size])
        at += size
    return attempts


def chunk_message(sha256: str, offset: int, data: bytes) -> bytes:
    return bytes(device_pb2.PieceChunk(sha256=sha256, offset=offset, data=data).SerializeToString())


async def faithful(ranges: Sequence[PieceRange], size: int = 300) -> AsyncIterator[PieceChunk]:
    """What an honest fleet manager sends."""
    for wanted in ranges:
        data = _BY_DIGEST[wanted.sha256]
        for offset in range(wanted.offset, len(data), size):
            yield PieceChunk(wanted.sha256, offset, data[offset : offset + size])


class _Scripted:
    """A source that plays a script, a stream at a time, and is honest after it."""

    def __init__(self, data: bytes) -> None:
        self.left = _attempts(data)
        self.asked = 0

    async def fetch(self, ranges: Sequence[PieceRange]) -> AsyncIterator[PieceChunk]:
        self.asked += 1
        if not self.left:
            async for honest in faithful(ranges):
                yield honest
            return
        for message in self.left.pop(0):
            if message is None:
                raise LinkError("the stream broke")
            try:
                chunk = device_pb2.PieceChunk.FromString(message)
            except DecodeError as error:  # as gRPC does with what is no message
                raise LinkError("the message cannot be read") from error
            yield PieceChunk(chunk.sha256, int(chunk.offset), bytes(chunk.data))


class _Clock:
    """Waits for nothing, but lets a stream go on for ever before it is said to have stalled."""

    def now_s(self) -> float:
        return 0.0

    def monotonic_s(self) -> float:
        return 0.0

    def utc_offset_minutes(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        if seconds == LIMITS.stall_s:
            await asyncio.Event().wait()


class PieceBed:
    """A device that fetches, with a store in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.store = FilePieceStore(folder)

    def ports(self, source: object) -> FetchPorts:
        return FetchPorts(source, self.store, _Clock(), run_inline, lambda: 0.5)  # type: ignore[arg-type]

    def feed(self, data: bytes) -> None:
        """``data``: see ``script``."""
        self.store.keep_only(frozenset())
        source = _Scripted(data)
        hostile = len(source.left)
        with refusals(LinkError):
            asyncio.run(PieceFetch(PIECES, self.ports(source), LIMITS).run())
            for digest, content in _BY_DIGEST.items():
                assert self.store.read(digest) == content
        assert source.asked <= hostile + len(PIECES), "it asked on and on"
        self.check()

    def check(self) -> None:
        """Nothing is kept that was not asked for, and nothing has a name that it does not deserve."""
        for path in self._folder.iterdir():
            digest, _, part = path.name.partition(".")
            assert digest in _BY_DIGEST, f"{path.name} was not asked for"
            content = path.read_bytes()
            assert len(content) <= len(_BY_DIGEST[digest])
            assert part == "part" or content == _BY_DIGEST[digest]

    def target(self) -> Target:
        whole = [chunk_message(digest, 0, data) for digest, data in _BY_DIGEST.items()]
        halves = [
            chunk_message(digest, offset, data[offset : offset + 400])
            for digest, data in _BY_DIGEST.items()
            for offset in (0, 400)
        ]
        seeds = (script([whole[:3], whole[3:]]), script([halves[:3], halves[3:6]]), script([[]]))
        return Target("pieces", seeds, self.feed)
