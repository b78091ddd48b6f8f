"""Applications on the real devices: an unmodified client for each, asking every model and saying what was right."""

import threading
from collections.abc import Sequence
from typing import Any, Final

import grpc
import numpy as np
import tritonclient.grpc as triton

from benchmarks.rollout_outcomes.model import drawn_input
from protos import feedback_pb2, feedback_pb2_grpc

__all__ = ["Traffic"]

_TIMEOUT_S: Final = 90.0


class Traffic:
    """A thread a device until ``stop``; ``rate`` requests a second of each model. ``answered`` and ``failed`` count."""

    def __init__(self, addresses: Sequence[str], models: Sequence[str], rate: float) -> None:
        self.answered = self.failed = 0
        self._models, self._rate = tuple(models), rate
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(number, address), daemon=True)
            for number, address in enumerate(addresses)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the clients, after their last answers."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * _TIMEOUT_S)

    def _ask(self, number: int, address: str) -> None:
        draw, count = np.random.default_rng(number), 0
        pause_s = 1.0 / (self._rate * len(self._models))
        with (
            triton.InferenceServerClient(address) as client,
            grpc.insecure_channel(address) as channel,
        ):
            feedback = feedback_pb2_grpc.FeedbackServiceStub(channel).Feedback
            while not self._stopping.wait(pause_s):
                count += 1
                model = self._models[count % len(self._models)]
                x, right = drawn_input(draw)
                try:
                    _infer(client, model, x, str(count))
                    said = feedback_pb2.FeedbackRequest(
                        model_name=model, request_id=str(count), label=right
                    )
                    feedback(said, timeout=_TIMEOUT_S)
                except (triton.InferenceServerException, grpc.RpcError):
                    self._count(failed=1)
                else:
                    self._count(answered=1)

    def _count(self, *, answered: int = 0, failed: int = 0) -> None:
        with self._lock:
            self.answered += answered
            self.failed += failed


def _infer(client: Any, model: str, x: Any, request_id: str) -> None:
    tensor = triton.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    client.infer(model, [tensor], request_id=request_id, client_timeout=_TIMEOUT_S)
