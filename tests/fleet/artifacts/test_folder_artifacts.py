"""Pieces by digest: verified on the way in, whole on the way out, repaired when damaged."""

import hashlib
import threading
from pathlib import Path

import pytest

from agent.bundle import MAX_MANIFEST_BYTES, PIECE_BYTES
from fleet.artifacts.folder import FolderArtifacts
from fleet.errors import RefusedError, RequestError, ServerError

DATA = b"some bytes of a model"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def artifacts(tmp_path: Path) -> FolderArtifacts:
    return FolderArtifacts(tmp_path / "artifacts")


def stored_path(tmp_path: Path) -> Path:
    (path,) = (path for path in (tmp_path / "artifacts").rglob(SHA256) if path.is_file())
    return path


def test_a_piece_comes_back(artifacts: FolderArtifacts) -> None:
    assert artifacts.get(SHA256) is None
    assert artifacts.read(SHA256, 0, 10) is None
    artifacts.put(SHA256, DATA)
    artifacts.put(SHA256, DATA)
    assert artifacts.get(SHA256) == DATA
    assert artifacts.read(SHA256, 5, 5) == b"bytes"
    assert artifacts.read(SHA256, 1000, 5) == b""


def test_missing_names_each_once_in_order(artifacts: FolderArtifacts) -> None:
    artifacts.put(SHA256, DATA)
    assert artifacts.missing(["b" * 64, SHA256, "a" * 64, "b" * 64]) == ["b" * 64, "a" * 64]


def test_a_damaged_piece_is_missing_and_is_repaired_by_sending_it_again(
    artifacts: FolderArtifacts, tmp_path: Path
) -> None:
    artifacts.put(SHA256, DATA)
    stored_path(tmp_path).write_bytes(b"rot")
    assert artifacts.missing([SHA256]) == [SHA256]
    artifacts.put(SHA256, DATA)
    assert artifacts.missing([SHA256]) == []
    assert artifacts.get(SHA256) == DATA


def test_other_bytes_than_the_digest_are_refused(artifacts: FolderArtifacts) -> None:
    with pytest.raises(RefusedError, match=f"the bytes sent for {SHA256[:12]} have the digest"):
        artifacts.put(SHA256, b"other")
    assert artifacts.get(SHA256) is None


def test_too_many_bytes_are_refused(artifacts: FolderArtifacts) -> None:
    data = bytes(PIECE_BYTES + 1)
    with pytest.raises(RefusedError, match="has 262145 bytes, at most 262144 are allowed"):
        artifacts.put(hashlib.sha256(data).hexdigest(), data)
    with pytest.raises(RefusedError, match="the manifest has 524289 bytes, at most 524288"):
        artifacts.put_manifest(bytes(MAX_MANIFEST_BYTES + 1))


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_what_is_no_digest_never_becomes_a_path(artifacts: FolderArtifacts, digest: str) -> None:
    for call in (
        lambda: artifacts.get(digest),
        lambda: artifacts.read(digest, 0, 1),
        lambda: artifacts.manifest(digest),
        lambda: artifacts.missing([digest]),
        lambda: artifacts.put(digest, b""),
    ):
        with pytest.raises(RequestError, match="is no sha256 digest in lower-case hex"):
            call()


def test_manifests_are_kept_apart_from_pieces(artifacts: FolderArtifacts) -> None:
    sha256 = artifacts.put_manifest(b"{}\n")
    assert artifacts.manifest(sha256) == b"{}\n"
    assert artifacts.get(sha256) is None


def test_many_threads_may_store_the_same_piece(artifacts: FolderArtifacts, tmp_path: Path) -> None:
    threads = [threading.Thread(target=artifacts.put, args=(SHA256, DATA)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert artifacts.get(SHA256) == DATA
    assert [path.name for path in stored_path(tmp_path).parent.iterdir()] == [SHA256]


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "artifacts").touch()
    artifacts = FolderArtifacts(tmp_path / "artifacts")
    with pytest.raises(ServerError, match=r"Check the disk of the fleet folder"):
        artifacts.put(SHA256, DATA)
