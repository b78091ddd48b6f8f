"""Counters and the latency histogram: what is counted where, and that a drain loses nothing."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from agent.runtime.counters import MAX_ERROR_KINDS, Counts, VersionCounters
from agent.runtime.histogram import MAX_INDEX, MIN_INDEX, SCALE, LatencyHistogram
from protos import report_pb2


@given(st.lists(st.floats(min_value=0.0, max_value=1e6), max_size=50))
def test_every_value_is_in_the_bucket_that_holds_it(values: list[float]) -> None:
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value)
    data = histogram.data()
    assert sum(data.counts) + data.zero_count == len(values)
    assert data.max == max(values, default=0.0)
    base = 2 ** (2**-SCALE)
    for k, count in enumerate(data.counts):
        index = data.offset + k
        low = 0.0 if index == MIN_INDEX else base**index
        high = float("inf") if index == MAX_INDEX else base ** (index + 1)
        inside = [value for value in values if low * (1 - 1e-9) < value <= high * (1 + 1e-9)]
        assert count <= len(inside)


def test_the_histogram_is_the_wire_histogram() -> None:
    histogram = LatencyHistogram()
    histogram.record(0.004)
    message = report_pb2.Histogram(**histogram.data().to_json())
    assert (message.scale, list(message.counts), message.sum) == (3, [1], 0.004)
    assert LatencyHistogram().data().counts == ()


def test_each_outcome_is_counted_once() -> None:
    counters = VersionCounters(objective_s=0.1)
    counters.answered(0.05)
    counters.answered(0.2, violations=True, non_finite=True)
    counters.failed("runtime")
    counters.refused()
    counts = counters.drain()
    assert counts.latency is not None
    assert sum(counts.latency.counts) == 2
    assert counts == Counts(3, 1, 1, 1, 1, 1, {"runtime": 1}, counts.latency)
    assert counters.drain().requests == 0


def test_error_kinds_are_bounded() -> None:
    counters = VersionCounters(1.0)
    for i in range(3 * MAX_ERROR_KINDS):
        counters.failed(f"kind-{i}")
    kinds = counters.drain().error_kinds
    assert len(kinds) == MAX_ERROR_KINDS + 1
    assert sum(kinds.values()) == 3 * MAX_ERROR_KINDS


def test_drains_beside_requests_lose_nothing(eager_threads: None) -> None:
    counters = VersionCounters(1.0)
    drained: list[int] = []

    def ask() -> None:
        for _ in range(10_000):
            counters.answered(0.001)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        drained.append(counters.drain().requests)
    drained.append(counters.drain().requests)
    assert sum(drained) == 40_000


def test_a_request_right_after_the_drains_lock_is_in_the_next_drain() -> None:
    counters = VersionCounters(1.0)

    class ThenAnotherThread:
        """Lets a request in at the first moment it could come."""

        real = threading.Lock()
        requests = 1

        def __enter__(self) -> None:
            self.real.acquire()

        def __exit__(self, *_: object) -> None:
            self.real.release()
            if self.requests:
                self.requests -= 1
                counters.answered(0.001)

    counters._lock = ThenAnotherThread()  # type: ignore[assignment]
    assert counters.drain().requests == 0
    assert counters.drain().requests == 1
