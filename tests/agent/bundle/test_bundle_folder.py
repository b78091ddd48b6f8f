"""A bundle on disk: whatever is not exactly what the manifest says is refused by name."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.bundle import BundleFileError, ManifestError, manifest_sha256
from agent.bundle.folder import open_bundle_file, read_bundle, verify_folder
from agent.errors import DeviceError
from tests.support.onnx_models import MadeBundle, scale_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> MadeBundle:
    return scale_bundle(tmp_path / "bundle")


def test_a_whole_bundle_passes(bundle: MadeBundle) -> None:
    manifest, raw = read_bundle(bundle.path)
    assert manifest == bundle.manifest
    assert manifest_sha256(raw) == bundle.sha256
    assert verify_folder(bundle.path, expected_sha256=bundle.sha256) == manifest
    with open_bundle_file(bundle.path, "golden/0-in-x.bin") as stream:
        assert len(stream.read()) == 16


def flip_a_bit(root: Path) -> None:
    data = bytearray((root / "model.onnx").read_bytes())
    data[-1] ^= 1
    (root / "model.onnx").write_bytes(data)


def truncate(root: Path) -> None:
    (root / "model.onnx").write_bytes(b"")


def link_file(root: Path) -> None:
    (root / "model.onnx").rename(root.parent / "elsewhere")
    (root / "model.onnx").symlink_to(root.parent / "elsewhere")


def hard_link_file(root: Path) -> None:
    os.link(root / "model.onnx", root.parent / "elsewhere")


def link_folder(root: Path) -> None:
    (root / "golden").rename(root.parent / "elsewhere")
    (root / "golden").symlink_to(root.parent / "elsewhere")


def fifo(root: Path) -> None:
    (root / "model.onnx").unlink()
    os.mkfifo(root / "model.onnx")


def a_folder_instead(root: Path) -> None:
    (root / "model.onnx").unlink()
    (root / "model.onnx").mkdir()
    (root / "model.onnx" / "x").touch()


def extra_file(root: Path) -> None:
    (root / "golden" / "evil.so").touch()


def extra_folder(root: Path) -> None:
    (root / "empty").mkdir()


def extra_deep(root: Path) -> None:
    (root / "a" / "b" / "c" / "d").mkdir(parents=True)


def no_manifest(root: Path) -> None:
    (root / "manifest.json").unlink()


BROKEN = [
    (flip_a_bit, "piece 0 of 'model.onnx' does not have the sha256 the manifest says"),
    (truncate, "'model.onnx' has 0 bytes, the manifest says"),
    (link_file, "cannot open 'model.onnx': Too many levels of symbolic links (links are not"),
    (hard_link_file, "'model.onnx' has 2 hard links, so it could change from elsewhere"),
    (link_folder, "holds 'golden', which its manifest does not name"),
    (fifo, "'model.onnx' is not a regular file"),
    (a_folder_instead, "holds 'model.onnx/x', which its manifest does not name"),
    (extra_file, "holds 'golden/evil.so', which its manifest does not name; remove it"),
    (extra_folder, "holds 'empty/', which its manifest does not name"),
    (extra_deep, "holds 'a/b/c', which its manifest does not name"),
    (no_manifest, "cannot open 'manifest.json': No such file or directory"),
]


@pytest.mark.parametrize(
    ("damage", "message"), BROKEN, ids=lambda row: getattr(row, "__name__", "")
)
def test_damaged_folder_is_refused(
    bundle: MadeBundle, damage: Callable[[Path], None], message: str
) -> None:
    damage(bundle.path)
    with pytest.raises(BundleFileError) as refused:
        verify_folder(bundle.path)
    assert message in str(refused.value)
    assert str(bundle.path) in str(refused.value)


def test_another_manifest_than_expected_is_refused(bundle: MadeBundle) -> None:
    with pytest.raises(BundleFileError, match=f"has sha256 {bundle.sha256}, not {'0' * 64}"):
        verify_folder(bundle.path, expected_sha256="0" * 64)


def test_opening_follows_no_link_and_no_path_out(bundle: MadeBundle) -> None:
    link_folder(bundle.path)
    with pytest.raises(BundleFileError, match=r"cannot open 'golden/0-in-x.bin'"):
        open_bundle_file(bundle.path, "golden/0-in-x.bin")
    with pytest.raises(ManifestError, match=r"'../elsewhere' is not allowed"):
        open_bundle_file(bundle.path, "../elsewhere")


def test_a_manifest_of_endless_length_is_not_read_whole(bundle: MadeBundle) -> None:
    with (bundle.path / "manifest.json").open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ManifestError, match="is 524289 bytes; at most 524288 are allowed"):
        read_bundle(bundle.path)


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(BundleFileError, match=r"cannot open 'manifest.json': No such file"):
        verify_folder(tmp_path / "gone")


def test_a_disk_that_fails_is_not_the_bundles_fault(bundle: MadeBundle) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(DeviceError, match=r"cannot read 'manifest.json': Too many open files"):
            read_bundle(bundle.path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
