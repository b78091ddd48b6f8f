"""``python -m benchmarks.peers.direct ONNX INPUTS.npz THREADS WARM_S SECONDS``: onnxruntime without any server.

One session, asked by THREADS threads as fast as it answers; prints one line of JSON like ``benchmarks.load``.
"""

import json
import sys
import threading
import time
from dataclasses import asdict

import numpy as np
import onnxruntime

from benchmarks.load import summary


def main() -> None:
    """Measure what the arguments say."""
    onnx, tensors, threads, warm_s, seconds = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    feeds = dict(np.load(tensors))
    begin_s = time.perf_counter() + float(warm_s)
    end_s = begin_s + float(seconds)
    latencies: list[list[float]] = [[] for _ in range(int(threads))]

    def ask(mine: list[float]) -> None:
        now_s = time.perf_counter()
        while now_s < end_s:
            session.run(None, feeds)
            before_s, now_s = now_s, time.perf_counter()
            if begin_s <= now_s < end_s:
                mine.append(now_s - before_s)

    running = [threading.Thread(target=ask, args=(mine,)) for mine in latencies]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    flat = [one for mine in latencies for one in mine]
    print(json.dumps(asdict(summary(flat, float(seconds), 0))))


if __name__ == "__main__":
    main()
