"""The main job with a real model: published, tried, swapped under load, promoted; a bad one rolled back by itself."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton

from tests.support.bundles import magika_project
from tests.support.fleet import Device, FleetHost
from tests.support.hammer import PAUSE_S


class Hammer:
    """An unmodified client that asks for the same input over and over and keeps every answer."""

    def __init__(self, address: str, model: str, inputs: dict[str, Any]) -> None:
        self.answers: list[tuple[str, dict[str, Any]]] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._args = (address, model, inputs)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        address, model, arrays = self._args
        client = triton.InferenceServerClient(address)
        metadata = client.get_model_metadata(model)
        inputs = []
        for tensor in metadata.inputs:
            array = arrays[tensor.name]
            one = triton.InferInput(tensor.name, list(array.shape), tensor.datatype)
            one.set_data_from_numpy(array)
            inputs.append(one)
        names = [tensor.name for tensor in metadata.outputs]
        while not self._stop.wait(PAUSE_S):
            try:
                answer = client.infer(model, inputs, client_timeout=90)
            except triton.InferenceServerException as error:
                self.failures.append(str(error))
                continue
            version = answer.get_response().model_version
            self.answers.append((version, {name: answer.as_numpy(name) for name in names}))
        client.close()

    def count(self) -> int:
        return len(self.answers) + len(self.failures)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(120)


@pytest.fixture
def magika_input() -> dict[str, Any]:
    """Bytes of this very file, as magika's preprocessing lays them out."""
    data = Path(__file__).read_bytes()
    model = onnxruntime.InferenceSession(magika_onnx(), providers=["CPUExecutionProvider"])
    (wanted,) = model.get_inputs()
    length = int(wanted.shape[-1])
    beginning, end = data[: length // 2], data[-(length - length // 2) :]
    row = np.frombuffer(beginning + end, dtype=np.uint8).astype(np.int32)
    return {wanted.name: row[None, :length]}


def magika_onnx() -> str:
    import magika

    (path,) = (
        list(Path(magika.__file__).parent.glob("models/standard_v3_3/*.onnx"))
        or sorted(Path(magika.__file__).parent.glob("models/*/*.onnx"))[-1:]
    )
    return str(path)


@pytest.fixture
def hammers() -> Iterator[list[Hammer]]:
    running: list[Hammer] = []
    yield running
    for hammer in running:
        hammer.stop()


def test_a_real_model_is_swapped_without_a_failed_request(
    fleet_host: FleetHost,
    new_device: Callable[..., Device],
    magika_input: dict[str, Any],
    hammers: list[Hammer],
) -> None:
    device = new_device("magika-1")
    device.start()
    device.wait_known()
    first = fleet_host.publish(magika_project(device.folder / "a", "1.0.0"))
    fleet_host.wait_rollout(
        fleet_host.start_rollout(first, [(100, 0.5)], device=device.id), "promoted"
    )
    hammers.append(Hammer(device.address, "magika", magika_input))
    second = fleet_host.publish(magika_project(device.folder / "b", "1.0.1"))
    wait_for_more(hammers[0], 1)

    rollout = fleet_host.start_rollout(second, [(100, 1.0)], device=device.id)
    fleet_host.wait_rollout(rollout, "promoted")

    after_swap = hammers[0].count()
    wait_for_more(hammers[0], after_swap + 20)
    hammers[0].stop()
    assert not hammers[0].failures
    versions = [version for version, _ in hammers[0].answers]
    assert versions[0] == "1.0.0"
    assert versions[-1] == "1.0.1"
    assert versions == sorted(versions), "an old version answered after the swap"
    assert_equal_to_onnxruntime(hammers[0].answers, magika_input)


def wait_for_more(hammer: Hammer, count: int) -> None:
    from tests.support.daemon import wait_until

    wait_until(lambda: hammer.count() >= count, f"{count} requests")


def assert_equal_to_onnxruntime(
    answers: list[tuple[str, dict[str, Any]]], inputs: dict[str, Any]
) -> None:
    session = onnxruntime.InferenceSession(magika_onnx(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(names, inputs), strict=True))
    for version, outputs in answers:
        for name, array in outputs.items():
            np.testing.assert_allclose(
                array, expected[name], rtol=1e-5, atol=1e-6, err_msg=f"{name} of {version}"
            )


def test_a_bad_bundle_is_reverted_on_the_device_and_rolled_back_in_the_fleet(
    fleet_host: FleetHost, new_device: Callable[..., Device], hammers: list[Hammer]
) -> None:
    """Its outputs leave its own contract once real inputs arrive: nothing before the swap can see that."""
    from tests.support.bundles import tiny_project

    device = new_device("bad-1")
    device.start()
    device.wait_serving("tiny", "1.0.0")
    hammers.append(Hammer(device.address, "tiny", {"x": np.full((1, 4), 3, np.float32)}))
    # It fails on its first ten requests, however long a busy machine takes for them.
    project = tiny_project(device.folder, "6.6.6", output_range=(0.0, 1.0), probation_s=60.0)
    path = fleet_host.publish(project)

    rollout = fleet_host.start_rollout(
        path, [(100, 5.0)], device=device.id, max_install_failure_rate=0.3
    )

    ended = fleet_host.wait_rollout(rollout, "rolled_back")
    device.wait_serving("tiny", "1.0.0")
    hammers[0].stop()
    assert not hammers[0].failures
    assert ended["reason"]
    events = fleet_host.device(device.id)["events"]
    reverted = [event for event in events if event["outcome"] == "reverted"]
    assert reverted
    assert reverted[-1]["reason_code"] == "probation_output_violations"


def test_sigterm_ends_both_daemons_cleanly(
    fleet_host: FleetHost, new_device: Callable[..., Device]
) -> None:
    device = new_device("polite")
    device.start()
    device.wait_serving("tiny", "1.0.0")
    children = device.children()

    assert device.daemon.terminate() == 0, device.daemon.tail()

    import psutil

    assert not [pid for pid in children if psutil.pid_exists(pid)]
    fleet_host.stop()
    assert fleet_host.daemon.process.returncode == 0, fleet_host.daemon.tail()
    fleet_host.start()
