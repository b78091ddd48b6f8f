"""What is generated and committed equals what the generator makes now."""

from pathlib import Path

import pytest

from docs.generate import documents
from protos import generate

ROOT = Path(__file__).resolve().parents[2]


def test_regenerating_the_protobuf_modules_changes_nothing(tmp_path: Path) -> None:
    assert generate.generate(tmp_path) == 0
    made = {path.name: path.read_text() for path in (tmp_path / "protos").iterdir()}
    committed = {
        path.name: path.read_text()
        for path in (ROOT / "protos").iterdir()
        if path.name.endswith(("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"))
    }
    assert made.keys() == committed.keys()
    changed = [name for name in made if made[name] != committed[name]]
    assert not changed, f"run `python -m protos.generate` and commit: {changed}"


@pytest.mark.parametrize("name", sorted(documents()))
def test_generated_document_is_current(name: str) -> None:
    committed = ROOT / "docs" / name
    assert committed.exists(), f"run `python -m docs.generate` and commit docs/{name}"
    assert committed.read_text(encoding="utf-8") == documents()[name], (
        f"run `python -m docs.generate` and commit docs/{name}"
    )
