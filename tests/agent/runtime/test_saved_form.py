"""The device's own form of a bundle: made and measured apart, used only when everything about it fits."""

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from agent.adapters.measured import MeasuredStore
from agent.adapters.trial import ProcessTrial, TrialKeeping
from agent.bundle import TensorSpec
from agent.runtime import loading
from agent.runtime.engine import ort
from agent.runtime.registry import Registry
from agent.runtime.saved_form import (
    FormMeasures,
    Maker,
    SavedForm,
    better_form,
    files_of,
    processor,
    read_form,
    verified_form,
    write_form,
)
from agent.runtime.trial_process import run_form_trial
from tests.support.onnx_models import BundleMaker, MadeBundle, floats, model_bytes, scale_bundle

SIZE = 96
TABLE = np.random.default_rng(7).standard_normal((SIZE, SIZE)).astype(np.float32)


def matrix_bundle(folder: Path, **changes: Any) -> MadeBundle:
    """y = x @ table, with weights large enough to be kept apart, and one golden case."""
    table = helper.make_tensor("table", TensorProto.FLOAT, TABLE.shape, TABLE.tobytes(), raw=True)
    shape = ("batch", SIZE)
    model = model_bytes(
        [helper.make_node("MatMul", ["x", "table"], ["y"])],
        [floats("x", shape)],
        [floats("y", shape)],
        [table],
    )
    x = np.ones((1, SIZE), np.float32)
    maker = BundleMaker(
        models={"model.onnx": model},
        inputs=[TensorSpec("x", "FP32", (-1, SIZE))],
        outputs=[TensorSpec("y", "FP32", (-1, SIZE))],
        golden=[({"x": x}, {"y": x @ TABLE})],
        atol=1e-4,
        model="matrix",
        **changes,
    )
    return maker.write(folder)


@pytest.mark.parametrize(
    ("plain", "saved", "better"),
    [
        ((100, 5.0, 30.0), (1, 5.0, 30.0), True),
        ((100, 5.0, 30.0), (1, 5.2, 31.0), True),  # within what runs differ
        ((100, 5.0, 30.0), (1, 6.0, 30.0), False),  # one row is slower
        ((100, 5.0, 30.0), (1, 5.0, 60.0), False),  # a batch is slower
        ((100, 5.0, 30.0), (90, 5.0, 30.0), False),  # hardly faster to load
        ((2.0, 0.010, 0.0), (1.0, 0.020, 0.0), True),  # microseconds are noise
    ],
)
def test_which_form_is_better(plain: Any, saved: Any, better: bool) -> None:
    assert better_form(FormMeasures(*plain), FormMeasures(*saved)) is better


# --- the record -----------------------------------------------------------------------------------

MAKER = Maker("ab" * 32, "1.32.0", "x86_64-1", ("CPUExecutionProvider",))


@pytest.fixture
def form(tmp_path: Path) -> Path:
    folder = tmp_path / "form"
    folder.mkdir()
    (folder / "stage-0.onnx").write_bytes(b"graph")
    (folder / "stage-0.weights").write_bytes(b"weights")
    measures = FormMeasures(1.0, 2.0, 3.0)
    write_form(folder, SavedForm(MAKER, True, measures, measures, files_of(folder)))
    return folder


def test_what_was_written_is_read_again(form: Path) -> None:
    found = verified_form(form, MAKER)
    assert found is not None
    assert found == read_form(form)
    assert [(file.name, file.size) for file in found.files] == [
        ("stage-0.onnx", 5),
        ("stage-0.weights", 7),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"onnxruntime": "1.33.0"},
        {"processor": "x86_64-2"},
        {"manifest_sha256": "cd" * 32},
        {"providers": ("CUDAExecutionProvider", "CPUExecutionProvider")},
    ],
)
def test_never_trusted_by_another_than_its_maker(form: Path, change: dict[str, Any]) -> None:
    assert verified_form(form, replace(MAKER, **change)) is None


def swap_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def record_of(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        record = json.loads((path.parent / "form.json").read_text())
        change(record)
        (path.parent / "form.json").write_text(json.dumps(record))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        swap_bytes,
        Path.unlink,
        link,
        lambda path: os.link(path, path.with_name("second")),
        lambda path: path.write_bytes(b""),
        lambda path: (path.parent / "form.json").write_bytes(b"{"),
        lambda path: (path.parent / "form.json").write_bytes(b"[" * 70_000),
        lambda path: (path.parent / "form.json").unlink(),
        record_of(lambda record: record.update(format=2)),
        record_of(lambda record: record.update(kept=False)),
        record_of(lambda record: record.update(files=[])),
        record_of(lambda record: record["files"][0].update(name="../form/stage-0.onnx")),
        record_of(lambda record: record["files"][0].pop("sha256")),
        record_of(lambda record: record["plain"].update(load_ms="fast")),
    ],
)
def test_never_used_once_anything_about_it_is_wrong(
    form: Path, damage: Callable[[Path], object]
) -> None:
    damage(form / "stage-0.onnx")
    assert verified_form(form, MAKER) is None


# --- made, measured, loaded -----------------------------------------------------------------------


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.close()


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[MadeBundle, Path]:
    """A bundle and its form, kept whatever was measured: which is faster is the machine's affair."""
    folder = tmp_path_factory.mktemp("forms")
    bundle = matrix_bundle(folder / "b")
    target = folder / "form"
    target.mkdir()
    problem = asyncio.run(run_form_trial(bundle.path, target))
    assert problem == ""
    record = read_form(target)
    assert record is not None
    assert record.plain.load_ms > 0 < record.saved.load_ms
    assert record.plain.batch_latency_ms > 0 < record.saved.batch_latency_ms
    if not record.kept:
        _save_again(bundle, target, record)
    return bundle, target


def _save_again(bundle: MadeBundle, target: Path, record: SavedForm) -> None:
    from agent.runtime.session import EngineOptions, save_session

    save_session(bundle.path / "model.onnx", "stage", 1, EngineOptions(), target / "stage-0.onnx")
    (target / "form.json").unlink()
    write_form(target, replace(record, kept=True, files=files_of(target)))


@pytest.fixture
def made(made_once: tuple[MadeBundle, Path], tmp_path: Path) -> tuple[MadeBundle, Path]:
    """A copy of it that a test may damage."""
    bundle, form = made_once
    return bundle, Path(shutil.copytree(form, tmp_path / "form"))


def answer(registry: Registry, x: Any) -> Any:
    with registry.acquire("matrix") as handle:
        return handle.pipeline.run({"x": x})["y"]


def test_the_form_answers_like_the_bundle(
    made: tuple[MadeBundle, Path], registry: Registry
) -> None:
    bundle, form = made
    record = read_form(form)
    assert record is not None
    maker = Maker(bundle.sha256, ort.__version__, processor(), ("CPUExecutionProvider",))
    assert record.maker == maker
    assert [file.name for file in record.files] == ["stage-0.onnx", "stage-0.weights"]
    assert (form / "stage-0.weights").stat().st_size >= TABLE.nbytes
    servable = registry.load(bundle.path, bundle.sha256, form)
    assert servable.saved_form
    registry.activate("matrix", bundle.sha256)
    x = np.random.default_rng(1).standard_normal((3, SIZE)).astype(np.float32)
    np.testing.assert_allclose(answer(registry, x), x @ TABLE, rtol=1e-4, atol=1e-4)


def test_after_a_change_of_onnxruntime_the_bundle_itself_is_loaded(
    made: tuple[MadeBundle, Path], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, form = made

    class Newer:
        __version__ = "99.0.0"

    monkeypatch.setattr(loading, "ort", Newer)
    assert not registry.load(bundle.path, bundle.sha256, form).saved_form


def test_a_form_that_cannot_be_loaded_costs_nothing_but_a_warning(
    made: tuple[MadeBundle, Path], registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, form = made
    record = read_form(form)
    assert record is not None
    (form / "stage-0.onnx").write_bytes(b"not a graph")
    (form / "form.json").unlink()
    write_form(form, replace(record, files=files_of(form)))
    assert not registry.load(bundle.path, bundle.sha256, form).saved_form
    assert "the saved form is not used" in caplog.text


def test_without_a_form_the_bundle_is_loaded(
    made: tuple[MadeBundle, Path], registry: Registry, tmp_path: Path
) -> None:
    bundle, _ = made
    assert not registry.load(bundle.path, bundle.sha256, tmp_path / "nothing").saved_form


# --- beside the slot ------------------------------------------------------------------------------


async def test_the_trial_keeps_measures_and_form_beside_the_slot(tmp_path: Path) -> None:
    bundle = matrix_bundle(tmp_path / "b")
    store = MeasuredStore(tmp_path / "measured")
    trial = ProcessTrial(keeping=TrialKeeping(store, reserve_bytes=0))
    result = await trial.run(str(bundle.path), bundle.manifest)
    assert result.ok, result.reason
    assert result.measures["saved_form"] in (0.0, 1.0)
    assert result.measures["plain_load_ms"] > 0 < result.measures["saved_load_ms"]
    assert store.model_bytes(bundle.sha256) == result.measures["model_rss_bytes"]
    form = Path(store.form_path(bundle.sha256))
    record = read_form(form)
    assert record is not None
    assert record.kept is bool(result.measures["saved_form"])
    assert (len(list(form.iterdir())) > 1) is record.kept
    store.keep_only(frozenset())
    assert list((tmp_path / "measured").iterdir()) == []
    assert store.model_bytes(bundle.sha256) is None


async def test_without_room_on_the_disk_there_is_no_form_and_the_bundle_passes(
    tmp_path: Path,
) -> None:
    bundle = scale_bundle(tmp_path / "b")
    store = MeasuredStore(tmp_path / "measured")
    trial = ProcessTrial(keeping=TrialKeeping(store, reserve_bytes=1 << 62))
    result = await trial.run(str(bundle.path), bundle.manifest)
    assert result.ok
    assert "saved_form" not in result.measures
    assert store.model_bytes(bundle.sha256)
    assert read_form(Path(store.form_path(bundle.sha256))) is None


async def test_a_form_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    target = tmp_path / "form"
    target.mkdir()
    assert "manifest.json" in await run_form_trial(tmp_path / "nothing", target)
    assert list(target.iterdir()) == []
