"""What a device knows of its memory: the least of system and control groups, and what was measured."""

from pathlib import Path

import psutil
import pytest

from agent.adapters.device_memory import DeviceMemory
from agent.adapters.measured import MeasuredStore
from agent.errors import DeviceError

DIGEST = "ab" * 32
MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> MeasuredStore:
    return MeasuredStore(tmp_path / "measured")


def group(folder: Path, limit: str, current: int = 0, idle: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {idle}\n")


def available(store: MeasuredStore, tmp_path: Path, own: str) -> int | None:
    (tmp_path / "own").write_text(own)
    return DeviceMemory(store, tmp_path / "groups", tmp_path / "own").available_bytes()


def test_the_tightest_group_counts(store: MeasuredStore, tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    group(groups / "system.slice" / "agent.service", str(100 * MIB), 70 * MIB, 10 * MIB)
    group(groups / "system.slice", str(90 * MIB), 60 * MIB)
    own = "0::/system.slice/agent.service\n"
    assert available(store, tmp_path, own) == 30 * MIB
    group(groups / "system.slice", "max")
    assert available(store, tmp_path, own) == 40 * MIB


@pytest.mark.parametrize("own", ["", "0::/\n", "0::/gone\n", "3:memory:/old\n", "0::/../..\n"])
def test_without_a_group_it_is_the_systems(store: MeasuredStore, tmp_path: Path, own: str) -> None:
    found = available(store, tmp_path, own)
    assert found is not None
    assert 0 < found <= psutil.virtual_memory().total


def test_what_cannot_be_read_is_no_limit(store: MeasuredStore, tmp_path: Path) -> None:
    group(tmp_path / "groups" / "a", "soon")
    found = available(store, tmp_path, "0::/a\n")
    assert found is not None
    assert found > 0


def test_measures_and_swaps_are_kept_by_bundle(store: MeasuredStore) -> None:
    memory = DeviceMemory(store)
    assert memory.model_bytes(DIGEST) is None
    store.keep_trial(DIGEST, {"model_rss_bytes": 5.0 * MIB, "load_ms": 1.0})
    memory.keep_swap(DIGEST, {"mode": "beside", "reason": "it fits"})
    assert memory.model_bytes(DIGEST) == 5 * MIB
    assert store.swap(DIGEST) == {"mode": "beside", "reason": "it fits"}
    store.keep_only(frozenset({DIGEST}))
    assert memory.model_bytes(DIGEST) == 5 * MIB
    store.keep_only(frozenset({"cd" * 32}))
    assert memory.model_bytes(DIGEST) is None
    assert store.swap(DIGEST) == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"measures": 3}', b'{"measures": {"model_rss_bytes": "x"}}']
)
def test_a_damaged_record_is_as_if_it_were_not_there(
    store: MeasuredStore, tmp_path: Path, content: bytes
) -> None:
    store.keep_trial(DIGEST, {"model_rss_bytes": 5.0})
    (tmp_path / "measured" / DIGEST / "trial.json").write_bytes(content)
    assert store.model_bytes(DIGEST) is None


def test_only_digests_name_folders(store: MeasuredStore) -> None:
    with pytest.raises(DeviceError, match="is not the digest of a manifest"):
        store.form_path("../../etc")
