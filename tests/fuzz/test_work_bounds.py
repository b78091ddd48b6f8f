"""Twice the input takes about twice the work: instructions of the virtual machine are counted, so that it is the same
on every machine. A reader that compares everything with everything takes four times as many."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from agent.bundle import BundleFile, GoldenTensor, Manifest, Piece, Stage, check_manifest
from agent.nesting import is_deeper
from agent.runtime.dtypes import from_raw
from agent.runtime.errors import InputContractError
from agent.serving.http2.frames import PREFACE, Kind, frame
from agent.trust.limits import TrustLimits
from agent.trust.pack import open_pack
from agent.wire_fields import has_more_fields
from protos import inference_pb2 as oip
from tests.fuzz.bundle_targets import feed_manifest, manifest_seed
from tests.fuzz.holes import instructions
from tests.fuzz.serving_targets import feed_http2, feed_infer
from tests.fuzz.trust_targets import TrustBed

MOST: Final = 2.2


def check_growth(feed: Callable[[Any], object], make: Callable[[int], Any], count: int) -> None:
    """Raises AssertionError: twice as much takes far more than twice the work."""
    small, large = make(count), make(2 * count)
    for data in (small, large):
        feed(data)  # what is read once and remembered is no part of it
    one, two = (instructions(lambda data=data: feed(data)) for data in (small, large))
    assert two <= MOST * one, f"{two / one:.2f} times the work for twice the input"


def files(count: int) -> tuple[BundleFile, ...]:
    piece = Piece("d" * 64, 32)
    return tuple(BundleFile(f"g/{n}.bin", 32, "d" * 64, (piece,)) for n in range(count))


def golden(count: int) -> Manifest:
    """As many files as cases, each in one of them."""
    seed = manifest_seed()
    [case] = seed.golden
    cases = tuple(
        replace(case, name=f"c{n}", inputs=(("x", GoldenTensor(f"g/{n}.bin", "FP32", (2, 4))),))
        for n in range(count)
    )
    return replace(seed, files=seed.files + files(count), golden=cases)


def pieces(count: int) -> Manifest:
    seed = manifest_seed()
    many = tuple(Piece(f"{n:064x}", 100) for n in range(count))
    first = replace(seed.files[0], size=100 * count, pieces=many)
    return replace(seed, files=(first, *seed.files[1:]))


def labels(count: int) -> Manifest:
    seed = manifest_seed()
    named = replace(seed.outputs[0], labels=tuple(f"l{n}" for n in range(count)))
    return replace(seed, outputs=(named,))


def stages(count: int) -> Manifest:
    seed = manifest_seed()
    more = tuple(
        Stage(f"s{n}", "model.onnx", (("x", "in"),), tuple((f"o{m}", f"t{n}.{m}") for m in range(30)))
        for n in range(count)
    )  # fmt: skip
    return replace(seed, stages=seed.stages + more)


def parameters(count: int) -> Manifest:
    return replace(manifest_seed(), parameters={f"p{n}": n for n in range(count)})


@pytest.mark.parametrize(
    ("make", "count"),
    [(golden, 40), (pieces, 150), (labels, 300), (stages, 8), (parameters, 100)],
)
def test_a_manifest_with_many_of_something(make: Callable[[int], Manifest], count: int) -> None:
    check_growth(feed_manifest, lambda many: make(many).to_bytes(), count)


@pytest.mark.parametrize(("make", "count"), [(golden, 60), (pieces, 150), (stages, 8)])
def test_how_the_parts_of_a_manifest_fit(make: Callable[[int], Manifest], count: int) -> None:
    """Alone, where reading does not hide it: each golden tensor was looked for in a list of all files made for it."""
    check_growth(check_manifest, make, count)


def test_an_emergency_with_many_blocks(trust: TrustBed) -> None:
    def made(count: int) -> bytes:
        return json.dumps(
            {**trust.emergency_seed, "blocked": {f"{n:064x}": "x" for n in range(count)}}
        ).encode()

    check_growth(trust.feed_emergency, made, 300)


def test_a_directive_with_many_spans(trust: TrustBed) -> None:
    value = trust.directive.to_json()

    def made(count: int) -> bytes:
        hours = [f"mon-fri {n % 24:02}:{n:02}-{n % 24:02}:{n:02}" for n in range(count)]
        return json.dumps({**value, "open_hours": hours}).encode()

    check_growth(trust.feed_directive, made, 30)


def test_a_request_with_many_inputs() -> None:
    def made(count: int) -> bytes:
        request = oip.ModelInferRequest()
        for number in range(count):
            request.inputs.add(name=f"x{number}", datatype="FP32", shape=[1])
            request.raw_input_contents.append(bytes(4))
        return request.SerializeToString()

    check_growth(feed_infer, made, 100)


@pytest.mark.parametrize("unit", [b"\x2a\0", b"\x32\0", b"\x3a\0", b"\x48\1"])
def test_a_request_of_more_parts_than_are_taken_costs_no_more(unit: bytes) -> None:
    """It runs on the event loop, so whatever does not end there holds up everybody."""
    few, many = (
        instructions(lambda data=unit * count: feed_infer(data)) for count in (10_000, 100_000)
    )
    assert many <= few + 100


def test_a_shape_of_many_dimensions_is_not_multiplied() -> None:
    """The product of a million dimensions takes minutes, in one instruction."""
    with pytest.raises(InputContractError, match="more than 32 dimensions: 1000000"):
        from_raw(b"", "FP32", [255] * 1_000_000, "x")
    request = oip.ModelInferRequest()
    request.inputs.add(
        name="x", datatype="FP32", shape=[255] * 300_000
    ).contents.fp32_contents.append(1)
    feed_infer(request.SerializeToString())
    request.raw_input_contents.append(bytes(4))
    feed_infer(request.SerializeToString())


@pytest.mark.parametrize("kind", [Kind.PING, Kind.WINDOW_UPDATE, Kind.CONTINUATION])
def test_many_frames(kind: Kind) -> None:
    begun = PREFACE + frame(Kind.SETTINGS, 0, 0)
    one = {
        Kind.PING: frame(Kind.PING, 0, 0, bytes(8)),
        Kind.WINDOW_UPDATE: frame(Kind.WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
        Kind.CONTINUATION: frame(Kind.CONTINUATION, 0, 1, b""),
    }[kind]
    first = frame(Kind.HEADERS, 0, 1, b"") if kind is Kind.CONTINUATION else b""
    check_growth(feed_http2, lambda count: begun + first + one * count, 4 if first else 20)


def test_looks_before_reading_are_no_reading() -> None:
    """They go over the bytes once."""
    check_growth(lambda raw: is_deeper(raw, 32), lambda count: b'[{"a":"[{"},[]]' * count, 300)
    check_growth(lambda raw: has_more_fields(raw, 10**6), lambda count: b"\x0a\1x" * count, 300)
    assert instructions(lambda: has_more_fields(b"\x0a\0" * 10**6, 80)) < 20_000


def test_a_pack_is_left_after_as_many_files_as_there_may_be(trust: TrustBed) -> None:
    from agent.trust.pack import encode_pack

    few, many = (
        encode_pack({f"{n}.root.json": b"" for n in range(1, count)}) for count in (500, 5_000)
    )
    one, two = (instructions(lambda pack=pack: _refused(pack)) for pack in (few, many))
    assert two <= one + 100


def _refused(pack: bytes) -> None:
    with pytest.raises(Exception, match="more than the 80 files allowed"):
        open_pack(pack, TrustLimits())
