"""How much memory a hostile input may take, said for each reader in advance and measured: so much, and so many times
what came. Each bound is about twice what is measured today; what C libraries allocate is looked at from outside, by the
kernel's account of the process.
"""

import ctypes
import gc
import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from agent.trust.limits import TrustLimits
from protos import metadata_pb2
from tests.fuzz.bundle_targets import PieceBed, chunk_message, feed_manifest, manifest_seed, script
from tests.fuzz.enrol_targets import EnrolBed
from tests.fuzz.holes import peak_bytes
from tests.fuzz.mutations import nested
from tests.fuzz.serving_targets import BODIES, feed_body, feed_infer, feed_rest, rest_seed
from tests.fuzz.trust_targets import TrustBed

KB: Final = 1024
SHAPES: Final[Mapping[str, str]] = {
    "empty lists": "[" + ",".join(["[]"] * 15_000) + "]",
    "empty objects": "[" + ",".join(["{}"] * 15_000) + "]",
    "numbers": "[" + ",".join(["0"] * 25_000) + "]",
    "fractions": "[" + ",".join(["1.5"] * 12_000) + "]",
    "keys": "{" + ",".join(f'"{n:x}":0' for n in range(5_000)) + "}",
    "one long text": '"' + "x" * 50_000 + '"',
    "one text of escapes": '"' + "\\u00e9" * 8_000 + '"',
    "one long number": "9" * 4_300,
    "depth": nested(25_000),
    "depth of objects": '{"a":' * 10_000,
}
"""JSON of about 50 KB that is as much as it can be once it is read."""


def with_value(seed: Any, key: str, raw: str) -> bytes:
    return json.dumps({**seed, key: "@here@"}).replace('"@here@"', raw).encode()


def check(feed: Callable[[bytes], object], data: bytes, base: int, times: float) -> None:
    """Raises AssertionError: reading takes more than ``base`` bytes and ``times`` the size of ``data``."""
    feed(data[:1])  # what is made once and kept is no cost of the input
    allowed = base + times * len(data)
    peak = peak_bytes(lambda: feed(data))
    assert peak <= allowed, f"{peak} bytes for {len(data)} that came, more than {allowed:.0f}"


PACKS: Final[Mapping[str, bytes]] = {
    "zeros": gzip.compress(bytes(60_000_000), 1)[: TrustLimits().pack_bytes],
    "zeros, one byte too many": gzip.compress(bytes(TrustLimits().pack_unpacked_bytes + 1)),
    "not gzip": bytes(TrustLimits().pack_bytes),
    "too long": bytes(5_000_000),
    "empty files": gzip.compress(b"\x0a\0" * 500_000),
    "unknown fields": gzip.compress(b"\x10\0" * 500_000),
    "one file of brackets": gzip.compress(
        metadata_pb2.MetadataPack(
            files=[metadata_pb2.MetadataFile(name="timestamp.json", content=b"[" * 1_000_000)]
        ).SerializeToString()
    ),
}


@pytest.mark.parametrize("name", PACKS)
def test_a_pack(trust: TrustBed, name: str) -> None:
    """Twice what it may unpack to, whatever it is packed to: the bytes, and the message that holds them."""
    check(trust.feed_pack, PACKS[name], 2 * TrustLimits().pack_unpacked_bytes + 256 * KB, 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_manifest(shape: str) -> None:
    seed = json.loads(manifest_seed().to_bytes())
    check(feed_manifest, with_value(seed, "files", SHAPES[shape]), 256 * KB, 50)


@pytest.mark.parametrize("shape", SHAPES)
def test_signed_metadata(trust: TrustBed, shape: str) -> None:
    check(
        trust.feed_directive,
        with_value(trust.directive.to_json(), "selector", SHAPES[shape]),
        512 * KB,
        80,
    )


@pytest.mark.parametrize("shape", ["empty lists", "keys", "depth"])
def test_metadata_from_the_network(trust: TrustBed, shape: str) -> None:
    """Under a valid pack, as long as the role's own limit allows, and signed by nobody."""
    size = TrustLimits().targets_bytes
    raw = (SHAPES[shape] * (size // len(SHAPES[shape])))[:size]
    check(lambda data: trust.feed_offered("targets", data), raw.encode(), 1024 * KB, 60)


def test_a_stream_of_pieces(pieces: PieceBed) -> None:
    """One message at a time, and none of it is kept."""
    huge = [chunk_message("f" * 64, 0, bytes(60_000)) for _ in range(40)]
    long = [chunk_message(piece, 0, bytes(60_000)) for piece in ("a" * 64, "")]
    check(pieces.feed, script([[one] for one in huge]), 512 * KB, 1.5)
    check(pieces.feed, script([long] * 20), 512 * KB, 1.5)


@pytest.mark.parametrize("field", ["csr", "identity_key", "proof", "token", "device_id"])
def test_a_request_to_enrol(enrol: EnrolBed, field: str) -> None:
    """Of the size that the port takes at most: 64 KB."""
    long = "x" * 60_000 if field in ("token", "device_id") else b"\x30\x82" * 30_000
    asked = enrol.enrol_request(**{field: long})
    check(enrol.feed, b"\0" + asked.SerializeToString(), 512 * KB, 8)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rest_body(shape: str) -> None:
    check(feed_rest, b"\0\0" + with_value(rest_seed(), "inputs", SHAPES[shape]), 256 * KB, 50)


def test_a_packed_rest_body() -> None:
    """The most that a body may be, and the copies of it on the way."""
    for number, pack in ((b"\x01", gzip.compress), (b"\x02", zlib.compress)):
        check(feed_body, number + b"\xff" + pack(bytes(20_000_000)), 4 * BODIES.max_bytes, 4)


@pytest.mark.parametrize("unit", [b"\x2a\0", b"\x32\0", b"\x3a\0", b"\x22\0", b"\x48\1"])
def test_a_message_of_many_parts(unit: bytes) -> None:
    """Inputs, outputs, contents, parameters, and what is not known."""
    check(feed_infer, unit * 100_000, 1024 * KB, 4)


# --- what libraries take for themselves -----------------------------------------------------------


def resident_growth(work: Callable[[], object]) -> int:
    """By how much the process was larger at its largest than before, in bytes.

    What earlier work has left free in the heap is given back first, or it would be taken without a trace.
    """
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _pad: 0)(0)  # others than glibc have none
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is noted anew
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * KB for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize(
    ("feed", "data"),
    [
        ("pack", PACKS["empty files"]),
        ("infer", b"\x48\1" + b"\x2a\0" * 500_000),
        ("infer", b"\x48\1" + b"\x32\0" * 500_000),
    ],
    ids=["files of a pack", "inputs", "outputs"],
)
def test_an_object_for_every_two_bytes(trust: TrustBed, feed: str, data: bytes) -> None:
    """Protobuf would take 50 MB and more for each of these, where Python does not see it."""
    work = trust.feed_pack if feed == "pack" else feed_infer
    assert resident_growth(lambda: work(data)) < 16_000 * KB


def test_the_kernels_account_sees_what_a_library_takes() -> None:
    """Else the test above would pass whatever happened."""
    grown = resident_growth(lambda: metadata_pb2.MetadataPack.FromString(b"\x0a\0" * 500_000))
    assert grown > 16_000 * KB
