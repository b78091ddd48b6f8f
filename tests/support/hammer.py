"""An unmodified client that asks one model for the same input over and over and keeps every answer."""

import threading
from collections.abc import Mapping
from typing import Any

from tests.support.daemon import wait_until

__all__ = ["PAUSE_S", "Hammer"]

PAUSE_S = 0.005  # between two requests: the rest of the machine has work to do as well


class Hammer:
    """Asks from the start until ``stop``, in a thread of its own. ``answers``: (version, outputs by name)."""

    def __init__(
        self, address: str, model: str, inputs: Mapping[str, Any], *, timeout_s: float = 90.0
    ) -> None:
        self.answers: list[tuple[str, dict[str, Any]]] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self.timeout_s = timeout_s  # of each request from now on
        self._asked = (address, model, dict(inputs))
        self._thread = threading.Thread(target=self._run, name="hammer", daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """Requests that have ended, well or not."""
        return len(self.answers) + len(self.failures)

    def wait_for_more(self, count: int, timeout_s: float = 120.0) -> None:
        """Until so many more requests have ended."""
        wanted = self.count + count
        wait_until(lambda: self.count >= wanted, f"{count} more requests", timeout_s)

    def wait_for_version(self, version: str, timeout_s: float = 120.0) -> None:
        """Until an answer from now on is of this version."""
        seen = len(self.answers)

        def answered() -> bool:
            return any(got == version for got, _ in self.answers[seen:])

        wait_until(answered, f"an answer of version {version}", timeout_s)

    def stop(self) -> None:
        """End the client; it has let go of its connection after this."""
        self._stop.set()
        self._thread.join(120)

    def _run(self) -> None:
        import tritonclient.grpc as triton

        address, model, arrays = self._asked
        client = triton.InferenceServerClient(address)
        inputs = []
        metadata = client.get_model_metadata(model, client_timeout=90)
        for tensor in metadata.inputs:
            array = arrays[tensor.name]
            one = triton.InferInput(tensor.name, list(array.shape), tensor.datatype)
            one.set_data_from_numpy(array)
            inputs.append(one)
        names = [tensor.name for tensor in metadata.outputs]
        while not self._stop.wait(PAUSE_S):
            try:
                answer = client.infer(model, inputs, client_timeout=self.timeout_s)
            except triton.InferenceServerException as error:
                self.failures.append(str(error))
                continue
            version = answer.get_response().model_version
            self.answers.append((version, {name: answer.as_numpy(name) for name in names}))
        client.close()
