"""Slots on a real disk: assembled, sealed, verified, removed."""

import contextlib
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent.adapters.piece_store import FilePieceStore
from agent.adapters.slot_store import FolderSlotStore
from agent.bundle import BundleFile, Manifest, Piece, Stage, TensorSpec, manifest_sha256
from agent.bundle.folder import verify_folder
from agent.delivery import DiskFullError, PieceDigestError
from agent.errors import BundleError, DeviceError

CONTENTS = {"model.onnx": bytes(range(256)) * 10, "sub/labels.txt": b"one\ntwo\n", "empty.txt": b""}


def pieces_of(content: bytes, size: int = 1000) -> list[bytes]:
    return [content[i : i + size] for i in range(0, len(content), size)]


def make(contents: dict[str, bytes]) -> Manifest:
    files = tuple(
        BundleFile(
            name,
            len(data),
            hashlib.sha256(data).hexdigest(),
            tuple(Piece(hashlib.sha256(p).hexdigest(), len(p)) for p in pieces_of(data)),
        )
        for name, data in contents.items()
    )
    tensor = TensorSpec("x", "FP32", (-1,))
    return Manifest(
        model="m", version="1", device_class="pi", created_s=1, files=files,
        stages=(Stage("s", "model.onnx", (("x", "x"),), (("y", "y"),)),),
        inputs=(tensor,), outputs=(replace(tensor, name="y"),),
    )  # fmt: skip


@pytest.fixture
def pieces(tmp_path) -> FilePieceStore:
    store = FilePieceStore(tmp_path / "pieces")
    fill(store, CONTENTS)
    return store


def fill(store: FilePieceStore, contents: dict[str, bytes]) -> None:
    for data in contents.values():
        for piece in pieces_of(data):
            digest = hashlib.sha256(piece).hexdigest()
            if not store.has(digest):
                store.append(digest, 0, piece)
                store.complete(digest, len(piece))


@pytest.fixture
def slots(tmp_path) -> FolderSlotStore:
    return FolderSlotStore(tmp_path / "slots")


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "slots").iterdir()}


def test_a_staged_slot_is_a_bundle_folder(slots, pieces, tmp_path):
    manifest = make(CONTENTS)
    raw = manifest.to_bytes()
    digest = manifest_sha256(raw)
    assert slots.manifest(digest) is None
    slots.stage(manifest, raw, pieces)
    assert slots.manifest(digest) == manifest
    slots.verify(digest)
    verify_folder(slots.path(digest), expected_sha256=digest)
    for name, data in CONTENTS.items():
        assert (Path(slots.path(digest)) / name).read_bytes() == data
    assert names(tmp_path) == {digest}
    modes = {p.stat().st_mode & 0o222 for p in Path(slots.path(digest)).rglob("*")}
    assert modes == {0}


def test_staging_again_replaces_a_damaged_slot(slots, pieces):
    manifest = make(CONTENTS)
    raw = manifest.to_bytes()
    digest = manifest_sha256(raw)
    slots.stage(manifest, raw, pieces)
    file = Path(slots.path(digest)) / "model.onnx"
    file.chmod(0o600)
    file.write_bytes(b"?" + CONTENTS["model.onnx"][1:])
    with pytest.raises(BundleError, match=r"model\.onnx"):
        slots.verify(digest)
    slots.stage(manifest, raw, pieces)
    slots.verify(digest)


def test_a_rotten_piece_is_thrown_away_and_leaves_no_slot(slots, pieces, tmp_path):
    manifest = make(CONTENTS)
    raw = manifest.to_bytes()
    rotten = manifest.files[0].pieces[1].sha256
    (tmp_path / "pieces" / rotten).write_bytes(b"rot")
    with pytest.raises(PieceDigestError, match="damaged on the disk"):
        slots.stage(manifest, raw, pieces)
    assert not pieces.has(rotten)
    with pytest.raises(PieceDigestError, match="not here any more"):
        slots.stage(manifest, raw, pieces)
    assert names(tmp_path) == set()
    fill(pieces, CONTENTS)
    slots.stage(manifest, raw, pieces)


def test_a_manifest_that_contradicts_itself_is_the_publishers_fault(slots, pieces, tmp_path):
    manifest = make(CONTENTS)
    lying = replace(manifest.files[0], sha256="0" * 64)
    manifest = replace(manifest, files=(lying, *manifest.files[1:]))
    with pytest.raises(BundleError, match="its pieces are right but make up") as caught:
        slots.stage(manifest, manifest.to_bytes(), pieces)
    assert not isinstance(caught.value, PieceDigestError)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", ".hidden", "manifest.json", "a/../../b"])
def test_a_name_that_escapes_is_refused_even_without_the_parser(slots, pieces, tmp_path, name):
    manifest = make({**CONTENTS, name: b""})
    with pytest.raises(BundleError):
        slots.stage(manifest, manifest.to_bytes(), pieces)
    assert names(tmp_path) == set()
    assert {p.name for p in tmp_path.iterdir()} == {"pieces", "slots"}


def test_a_manifest_changed_on_disk_is_no_slot(slots, pieces):
    manifest = make(CONTENTS)
    raw = manifest.to_bytes()
    digest = manifest_sha256(raw)
    slots.stage(manifest, raw, pieces)
    for content in (replace(manifest, version="2").to_bytes(), b"{}", b""):
        file = Path(slots.path(digest)) / "manifest.json"
        file.chmod(0o600)
        file.write_bytes(content)
        assert slots.manifest(digest) is None
        with pytest.raises(BundleError):
            slots.verify(digest)


def test_remains_of_a_power_cut_are_no_slots_and_are_swept(slots, pieces, tmp_path):
    manifest = make(CONTENTS)
    raw = manifest.to_bytes()
    digest = manifest_sha256(raw)
    for left in (f".new-{digest}", f".old-{digest}"):
        (tmp_path / "slots" / left / "sub").mkdir(parents=True)
        (tmp_path / "slots" / left / "sub" / "file").write_bytes(b"half")
    assert slots.manifest(digest) is None
    with pytest.raises(DeviceError, match="there is no slot"):
        slots.path(digest)
    slots.stage(manifest, raw, pieces)
    slots.verify(digest)
    assert names(tmp_path) == {digest}


@pytest.mark.parametrize("at", range(40))
def test_a_power_cut_at_any_call_leaves_a_whole_slot_or_none(
    slots, pieces, tmp_path, monkeypatch, at
):
    """Every call that changes the disk fails from the ``at``-th on, as if the power were gone."""

    class Gone(BaseException):
        pass

    manifest = make(CONTENTS)
    raw = manifest.to_bytes()
    digest = manifest_sha256(raw)
    calls = 0
    with monkeypatch.context() as patch:
        for name in ("open", "fsync", "rename", "mkdir", "chmod", "unlink", "rmdir"):
            real = getattr(os, name)

            def fail(*args, _real=real, _name=name, **kwargs):
                nonlocal calls
                reading = _name == "open" and not args[1] & os.O_CREAT
                calls += not reading
                if calls > at and not reading:
                    raise Gone
                return _real(*args, **kwargs)

            patch.setattr(os, name, fail)
        with contextlib.suppress(Gone):
            slots.stage(manifest, raw, pieces)
    again = FolderSlotStore(tmp_path / "slots")
    if again.manifest(digest) is not None:
        again.verify(digest)
    again.stage(manifest, raw, pieces)
    again.verify(digest)
    assert names(tmp_path) == {digest}


def test_keep_only_removes_read_only_slots_and_nothing_else(slots, pieces, tmp_path):
    kept, gone = make(CONTENTS), replace(make(CONTENTS), version="2")
    for manifest in (kept, gone):
        slots.stage(manifest, manifest.to_bytes(), pieces)
    (tmp_path / "slots" / "README").write_text("not ours")
    digest = manifest_sha256(kept.to_bytes())
    slots.keep_only(frozenset({digest, "f" * 64}))
    assert names(tmp_path) == {digest, "README"}
    slots.verify(digest)


@pytest.mark.parametrize("digest", ["", "..", "../pieces", "F" * 64])
def test_a_name_that_is_no_digest_never_reaches_the_disk(slots, digest):
    for call in (slots.path, slots.manifest, slots.verify):
        with pytest.raises(DeviceError, match="is not the digest"):
            call(digest)


def test_a_full_disk_leaves_no_slot_and_the_others_whole(tmp_path, small_disk):
    contents = {"model.onnx": os.urandom(400_000)}
    pieces = FilePieceStore(tmp_path / "big")
    fill(pieces, contents)
    slots = FolderSlotStore(small_disk / "slots")
    first, second, third = (replace(make(contents), version=v) for v in "123")
    for manifest in (first, second):
        slots.stage(manifest, manifest.to_bytes(), pieces)
    with pytest.raises(DiskFullError):
        slots.stage(third, third.to_bytes(), pieces)
    slots.verify(manifest_sha256(second.to_bytes()))
    slots.keep_only(frozenset({manifest_sha256(second.to_bytes())}))
    slots.stage(third, third.to_bytes(), pieces)
