"""Applications on the devices: they ask for labels of real test images all the while, and know the right answers.

They speak the Open Inference Protocol through ``tritonclient``, as any application on a device may.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from fleet.demo.digits import MODEL, DigitsSplit
from fleet.errors import ConfigError

__all__ = ["Sample", "Score", "Traffic", "score"]

_READY_POLL_S: Final = 0.1
_ERROR_TEXTS_KEPT: Final = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: when it was sent (monotonic), by whom it was answered, and whether the label was right."""

    at_s: float
    device: str
    version: str  # "" when it failed
    correct: bool
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Score:
    """Requests of one version or span of time. ``accuracy`` is None when there were none."""

    requests: int
    failed: int
    accuracy: float | None
    p50_ms: float | None
    p99_ms: float | None


def score(samples: Sequence[Sample]) -> Score:
    """Count, accuracy over the answered ones, and latency percentiles."""
    answered = [sample for sample in samples if sample.version]
    if not answered:
        return Score(len(samples), len(samples), None, None, None)
    latencies = np.array([sample.latency_ms for sample in answered])
    correct = sum(sample.correct for sample in answered)
    return Score(
        requests=len(samples),
        failed=len(samples) - len(answered),
        accuracy=round(correct / len(answered), 4),
        p50_ms=round(float(np.percentile(latencies, 50)), 2),
        p99_ms=round(float(np.percentile(latencies, 99)), 2),
    )


@dataclass(slots=True)
class Traffic:
    """One client a device, each on its own thread, ``rate`` requests a second."""

    split: DigitsSplit
    rate: float
    samples: list[Sample] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def start(self, devices: dict[str, str]) -> None:
        """Begin to ask every device in ``devices`` (id -> ``host:port``), each from when it is ready.

        Raises:
            ConfigError: tritonclient is not installed.
        """
        try:
            import tritonclient.grpc  # noqa: F401  fails here rather than on every thread
        except ImportError as error:
            raise ConfigError(
                "the demo's clients need tritonclient: pip install 'muster-edge[demo]'"
            ) from error
        for number, (device, address) in enumerate(devices.items()):
            thread = threading.Thread(
                target=self._ask,
                args=(device, address, number),
                name=f"client-{device}",
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the clients and wait for their last answers."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _ask(self, device: str, address: str, number: int) -> None:
        import tritonclient.grpc as triton

        client = triton.InferenceServerClient(address)
        if not self._wait_ready(client):
            return
        pick = np.random.default_rng(number)
        while not self._stopping.wait(1.0 / self.rate):
            index = int(pick.integers(len(self.split.test_images)))
            tensor = triton.InferInput("image", [1, 64], "FP32")
            tensor.set_data_from_numpy(self.split.test_images[index : index + 1])
            started = time.monotonic()
            try:
                answer = client.infer(MODEL, [tensor], client_timeout=60)
            except triton.InferenceServerException as error:
                self.samples.append(Sample(started, device, "", False, 0.0))
                if len(self.errors) < _ERROR_TEXTS_KEPT:
                    self.errors.append(f"{device}: {error}")
                continue
            latency_ms = (time.monotonic() - started) * 1000
            label = int(answer.as_numpy("label")[0])
            version = answer.get_response().model_version
            correct = label == int(self.split.test_labels[index])
            self.samples.append(Sample(started, device, version, correct, latency_ms))
        client.close()

    def _wait_ready(self, client: Any) -> bool:
        """Until the device serves its first model; False when the demo ended before that."""
        from tritonclient.grpc import InferenceServerException

        while not self._stopping.wait(_READY_POLL_S):
            try:
                if client.is_model_ready(MODEL):
                    return True
            except InferenceServerException:
                continue  # the agent's model server is still starting
        return False
