"""The shadow's queue and thread, with real models: what is compared, dropped, ended and left out."""

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from agent.bundle import Objectives, Stage, TensorSpec
from agent.runtime.counters import Counts
from agent.runtime.registry import Registry
from agent.runtime.routing import Role, Share
from agent.runtime.servable import Beside, Servable
from agent.serving.shadow import Answered, ShadowLimits, ShadowRunner
from agent.serving.watchdog import RunWatchdog
from tests.support.onnx_models import BundleMaker, MadeBundle, identity_model, loop_model

LIMIT_S = 60.0
ROUNDS = TensorSpec("rounds", "INT64", (-1,), minimum=0)
FOR_EVER = 2**40


class Watched(RunWatchdog):
    """Ends runs when the test says so."""

    def __init__(self) -> None:
        super().__init__(max_run_s=LIMIT_S, look_every_s=0.01)
        self.runs: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @contextmanager
    def watch(
        self, remaining_s: float | None, objective_s: float, manifest_sha256: str = ""
    ) -> Iterator[Any]:
        with super().watch(remaining_s, objective_s, manifest_sha256) as options:
            self.runs.put(options)
            yield options

    def next_run(self) -> Any:
        """The options of the next run that has begun."""
        return self.runs.get(timeout=LIMIT_S)


def bundle(folder: Path, model: bytes, name: str, version: str) -> MadeBundle:
    return BundleMaker(
        models={"model.onnx": model},
        stages=[Stage("main", "model.onnx", (("rounds", name),), (("y", "y"),))],
        inputs=[
            ROUNDS if version == "1" else TensorSpec("rounds", "INT64", (-1,), maximum=FOR_EVER)
        ],
        outputs=[TensorSpec("y", "INT64", (-1,))],
        model="count",
        version=version,
        objectives=Objectives(latency_ms=1.0),
    ).write(folder)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[MadeBundle, MadeBundle]:
    """y = x, and y = x counted up one by one, which may take for ever."""
    folder = tmp_path_factory.mktemp("bundles")
    counting = loop_over_first()
    return (
        bundle(folder / "active", identity_model(TensorProto.INT64), "x", "1"),
        bundle(folder / "shadow", counting, "rounds_in", "2"),
    )


def loop_over_first() -> bytes:
    """``loop_model`` for a row of one number instead of a scalar."""
    from onnx import helper, load_from_string

    graph = load_from_string(loop_model()).graph
    rounds_in = helper.make_tensor_value_info("rounds_in", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])
    nodes = [
        helper.make_node("Squeeze", ["rounds_in"], ["rounds"]),
        *graph.node,
        helper.make_node("Unsqueeze", ["y_scalar", "axis"], ["y"]),
    ]
    nodes[1].output[0] = "y_scalar"
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [0])
    made = helper.make_graph(nodes, "graph", [rounds_in], [y], [*graph.initializer, axis])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@dataclass
class Scene:
    registry: Registry
    watchdog: Watched
    runner: ShadowRunner
    active: Servable
    beside: Beside

    def offer(self, x: Any, y: int | None = None) -> None:
        """A request for x was answered y."""
        array = x if isinstance(x, np.ndarray) else np.array([x], np.int64)
        said = np.array([array[0] if y is None else y], np.int64)
        self.runner.offer(self.beside, Answered(self.active, {"rounds": array}, {"y": said}), "")

    def counts(self) -> Counts:
        assert self.runner.wait_idle(LIMIT_S)
        return self.beside.servable.counters.drain()


MakeScene = Callable[..., Scene]


@pytest.fixture
def scene(bundles: tuple[MadeBundle, MadeBundle]) -> Iterator[MakeScene]:
    made: list[Scene] = []

    def make(bp: int = 10_000, **limits: Any) -> Scene:
        registry, watchdog = Registry(), Watched()
        for one in bundles:
            registry.load(one.path, one.sha256)
        registry.activate("count", bundles[0].sha256)
        registry.share("count", Share(bundles[1].sha256, Role.SHADOW, bp, "", "r"))
        beside = registry.beside("count")
        assert beside is not None
        usual = {"max_run_s": LIMIT_S, "busy_runs": 99}
        runner = ShadowRunner(registry, watchdog, ShadowLimits(**{**usual, **limits}))
        made.append(Scene(registry, watchdog, runner, registry.versions("count")[0], beside))
        return made[-1]

    yield make
    for one in made:
        one.watchdog.stop()
        one.registry.close()


def test_answers_are_compared_and_counted_for_the_shadow_alone(scene: MakeScene) -> None:
    at = scene()
    at.offer(3)
    at.offer(4)
    assert at.runner.wait_idle(LIMIT_S)
    at.offer(5, y=6)
    counts = at.counts()
    assert (counts.requests, counts.failures, counts.shadow_dropped) == (3, 0, 0)
    assert (counts.shadow_compared, counts.shadow_disagreed) == (3, 1)
    assert counts.output_counts == {"3": 1, "4": 1, "5": 1}
    assert counts.latency is not None
    assert sum(counts.latency.counts) + counts.latency.zero_count == 3
    assert at.active.counters.drain().any is False


def test_what_the_shadow_does_not_take_is_counted_as_refused(scene: MakeScene) -> None:
    at = scene()
    at.offer(FOR_EVER + 1)
    counts = at.counts()
    assert (counts.requests, counts.input_violations, counts.shadow_compared) == (0, 1, 0)


def test_copies_that_do_not_fit_are_dropped_and_memory_may_be_used_again(scene: MakeScene) -> None:
    at = scene(max_copies=3)
    at.offer(FOR_EVER)
    run = at.watchdog.next_run()
    buffer = np.array([7], np.int64).tobytes()
    reused = bytearray(buffer)
    at.offer(np.frombuffer(reused, np.int64))
    reused[:] = bytes(8)  # the front end takes the next request into the same memory
    at.offer(np.frombuffer(memoryview(buffer), np.int64))
    for x in (1, 2, 3):
        at.offer(x)
    run.terminate = True
    counts = at.counts()
    assert (counts.shadow_dropped, counts.shadow_compared, counts.shadow_disagreed) == (2, 3, 0)
    assert (counts.failures, counts.error_kinds) == (1, {"timeout": 1})
    assert counts.output_counts == {"7": 2, "1": 1}


def test_bytes_that_wait_are_bounded(scene: MakeScene) -> None:
    at = scene(max_bytes=15)
    at.offer(1)  # 8 bytes in, 8 out
    counts = at.counts()
    assert (counts.shadow_dropped, counts.requests) == (1, 0)


def test_a_busy_server_drops(scene: MakeScene) -> None:
    at = scene(busy_runs=1)
    with at.watchdog.watch(None, 1.0):
        at.offer(1)
        counts = at.counts()
    assert (counts.shadow_dropped, counts.requests) == (1, 0)
    at.offer(1)
    assert at.counts().requests == 1


def test_only_its_share_is_copied(scene: MakeScene) -> None:
    at = scene(bp=2_500, max_copies=999)
    for _ in range(400):
        at.offer(1)
    # Binomial with n = 400, p = 1/4: five standard deviations are 43.
    assert abs(at.counts().shadow_compared - 100) < 43


def test_a_shadow_that_hangs_is_ended_counted_and_after_a_while_left_out(scene: MakeScene) -> None:
    at = scene(suspend_after=2)
    for x in (FOR_EVER, 1, FOR_EVER):  # in between it answers
        at.offer(x)
        if x == FOR_EVER:
            at.watchdog.next_run().terminate = True
        else:
            at.watchdog.next_run()
    assert at.counts().error_kinds == {"timeout": 2}
    assert at.beside.suspended is False
    at.offer(FOR_EVER)
    at.watchdog.next_run().terminate = True
    assert at.runner.wait_idle(LIMIT_S)
    assert at.beside.suspended is True
    at.offer(1)
    counts = at.counts()
    assert counts.error_kinds == {"timeout": 1, "suspended": 1}
    assert (counts.requests, counts.shadow_dropped) == (1, 1)


def test_what_is_no_shadow_any_more_gets_nothing(scene: MakeScene) -> None:
    at = scene()
    at.offer(FOR_EVER)
    run = at.watchdog.next_run()
    at.offer(1)  # waits
    counters = at.beside.servable.counters
    at.registry.share("count", None)
    at.offer(2)
    run.terminate = True
    assert at.runner.wait_idle(LIMIT_S)
    counts = counters.drain()
    assert (counts.requests, counts.shadow_compared, counts.shadow_dropped) == (1, 0, 0)
    assert at.beside.servable.counters.drain().any is False
