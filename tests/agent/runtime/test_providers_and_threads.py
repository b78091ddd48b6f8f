"""What models run on: the providers that were named or nothing, and the threads the bundle asks for."""

import os
from pathlib import Path

import psutil
import pytest

from agent.adapters.model_server import ProcessModelServer
from agent.errors import ConfigError, DeviceError
from agent.runtime import run_trial
from agent.runtime.errors import ModelLoadError
from agent.runtime.pipeline import Pipeline
from agent.runtime.providers import CPU, check_available, check_names
from agent.runtime.session import EngineOptions, threads_of
from tests.support.onnx_models import scale_bundle


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "must name 1 to 8 providers"),
        (["cpu"], "'cpu' is not the name of an execution provider"),
        (["CPUExecutionProvider,X"], "is not the name"),
        ([CPU, CPU], "names a provider twice"),
        (["AzureExecutionProvider"], "sends tensors to another machine"),
    ],
)
def test_names_that_are_refused(names: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_names(names, "[serving] providers")
    assert "[serving] providers" in str(caught.value)


def test_what_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(ConfigError) as caught:
        check_available(
            ("CUDAExecutionProvider", CPU), (CPU, "AzureExecutionProvider"), "[serving] providers"
        )
    assert str(caught.value) == (
        "[serving] providers: CUDAExecutionProvider is not available on this device; onnxruntime here has "
        "CPUExecutionProvider. Install the onnxruntime that has it, or change the list."
    )
    check_available((CPU,), (CPU,), "[serving] providers")


async def test_the_server_does_not_start_on_other_providers() -> None:
    server = ProcessModelServer("127.0.0.1:0", providers=("CUDAExecutionProvider", CPU))
    with pytest.raises(DeviceError, match="CUDAExecutionProvider is not available"):
        await server.start()


async def test_a_trial_never_runs_on_a_substitute(tmp_path: Path) -> None:
    made = scale_bundle(tmp_path / "b")
    report = await run_trial(made.path, providers=("CUDAExecutionProvider",))
    assert not report.ok
    assert report.reason_code == "trial_load_failed"


def test_a_pipeline_never_runs_on_a_substitute(tmp_path: Path) -> None:
    made = scale_bundle(tmp_path / "b")
    with pytest.raises(ModelLoadError):
        Pipeline.load(made.path, made.manifest, EngineOptions(providers=("CUDAExecutionProvider",)))


def test_threads_are_the_bundles_as_far_as_there_are_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert threads_of(0, EngineOptions()) == 1
    assert threads_of(1, EngineOptions()) == 1
    assert threads_of(1000, EngineOptions()) == cores
    assert threads_of(3, EngineOptions(max_threads=8)) == 3
    assert threads_of(3, EngineOptions(max_threads=2)) == 2


def test_each_model_has_its_own_threads(tmp_path: Path) -> None:
    engine = EngineOptions(max_threads=4)
    process = psutil.Process()

    def threads_for(number: int) -> tuple[int, Pipeline]:
        made = scale_bundle(tmp_path / str(number), intra_op_threads=number)
        before = process.num_threads()
        pipeline = Pipeline.load(made.path, made.manifest, engine)
        return process.num_threads() - before, pipeline

    # One of them is the caller's own.
    for number in (1, 2, 3):
        added, _pipeline = threads_for(number)
        assert added == number - 1
