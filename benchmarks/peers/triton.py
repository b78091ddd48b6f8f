"""``python -m benchmarks.peers.triton PORT MODEL INPUTS.npz CLIENTS WARM_S SECONDS``: unmodified ``tritonclient``.

What an application sees that uses the usual client library over gRPC; prints one line of JSON like ``benchmarks.load``.
"""

import json
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from benchmarks.load import summary


def main() -> None:
    """Measure what the arguments say."""
    port, model, tensors, clients, warm_s, seconds = sys.argv[1:]
    feeds = dict(np.load(tensors))
    begin_s = time.perf_counter() + float(warm_s)
    end_s = begin_s + float(seconds)
    latencies: list[list[float]] = [[] for _ in range(int(clients))]
    failed: list[str] = []

    def ask(mine: list[float]) -> None:
        client: Any = triton.InferenceServerClient(f"127.0.0.1:{port}")
        inputs = []
        for name, value in feeds.items():
            one = triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
            one.set_data_from_numpy(value)
            inputs.append(one)
        now_s = time.perf_counter()
        while now_s < end_s:
            before_s = time.perf_counter()
            try:
                client.infer(model, inputs, client_timeout=30)
                now_s = time.perf_counter()
                if begin_s <= now_s < end_s:
                    mine.append(now_s - before_s)
            except triton.InferenceServerException as error:
                failed.append(str(error))
                now_s = time.perf_counter()
        client.close()

    running = [threading.Thread(target=ask, args=(mine,)) for mine in latencies]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    flat = [one for mine in latencies for one in mine]
    print(json.dumps(asdict(summary(flat, float(seconds), len(failed)))))


if __name__ == "__main__":
    main()
