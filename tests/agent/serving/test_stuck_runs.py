"""The run watchdog: a run that does not end when told to is given up, with its thread to blame."""

import threading

import numpy as np
import pytest

from agent.bundle import Objectives, Stage, TensorSpec
from agent.runtime.errors import InferenceError
from agent.runtime.registry import Registry
from agent.serving.protocol import InferenceProtocol, Question
from agent.serving.watchdog import RunWatchdog
from tests.support.onnx_models import BundleMaker, loop_model

LIMIT_S = 30.0


def run_until(watchdog, ended):
    """A run in a thread that takes no notice of ``terminate``. Returns the thread's number and the run's options."""
    held = {}
    began = threading.Event()

    def run():
        with watchdog.watch(0.01, 0.0) as options:
            held["options"] = options
            began.set()
            ended.wait(LIMIT_S)

    thread = threading.Thread(target=run)
    thread.start()
    assert began.wait(LIMIT_S)
    return thread, held["options"]


def test_a_run_that_does_not_end_when_told_to_is_reported_stuck():
    stuck, ended = [], threading.Event()

    def report(thread):
        stuck.append(thread)
        ended.set()

    watchdog = RunWatchdog(max_run_s=60, look_every_s=0.005, stuck_s=0.02, stuck=report)
    try:
        thread, options = run_until(watchdog, ended)
        thread.join(LIMIT_S)
        assert options.terminate
        assert stuck[0] == thread.ident
    finally:
        watchdog.stop()


def test_a_run_that_ends_when_told_to_is_not():
    stuck, ended = [], threading.Event()
    watchdog = RunWatchdog(max_run_s=60, look_every_s=0.005, stuck_s=60, stuck=stuck.append)
    try:
        thread, options = run_until(watchdog, ended)
        told = threading.Event()
        while not options.terminate:
            told.wait(0.005)
        ended.set()
        thread.join(LIMIT_S)
        assert stuck == []
    finally:
        watchdog.stop()


def test_runs_that_take_longer_than_their_objective_are_told_while_they_last():
    watchdog = RunWatchdog(max_run_s=60, look_every_s=60)
    try:
        assert (watchdog.running, watchdog.overdue()) == (0, {})
        late = [watchdog.watch(None, -1.0, "a" * 64) for _ in range(2)]
        with late[0], late[1], watchdog.watch(None, 3600.0, "b" * 64):
            assert (watchdog.running, watchdog.overdue()) == (3, {"a" * 64: 2})
        assert (watchdog.running, watchdog.overdue()) == (0, {})
    finally:
        watchdog.stop()


def test_a_bundle_that_hangs_on_its_only_request_shows_in_what_is_drained(tmp_path):
    made = BundleMaker(
        models={"model.onnx": loop_model()},
        stages=[Stage("main", "model.onnx", (("rounds", "rounds"),), (("y", "y"),))],
        inputs=[TensorSpec("rounds", "INT64", ())],
        outputs=[TensorSpec("y", "INT64", ())],
        model="loop",
        objectives=Objectives(latency_ms=0.001),
    ).write(tmp_path / "bundle")
    registry, watchdog = Registry(), RunWatchdog(max_run_s=600, look_every_s=60)
    try:
        registry.load(made.path, made.sha256)
        registry.activate("loop", made.sha256)
        protocol = InferenceProtocol(registry, watchdog)
        failed = []

        def ask():
            rounds = {"rounds": np.array(2**40, np.int64)}
            with pytest.raises(InferenceError) as error:
                protocol.infer(Question("loop", "", lambda: rounds, lambda answer: None))
            failed.append(error.value.kind)

        thread = threading.Thread(target=ask)
        thread.start()
        for _ in range(20_000):
            if watchdog.overdue():
                break
            threading.Event().wait(0.005)
        (window,) = protocol.drained()
        assert (window["stuck"], window["requests"]) == (1, 0)
        (run,) = watchdog._runs.values()
        run.options.terminate = True
        thread.join(LIMIT_S)
        (window,) = protocol.drained()
        assert (window["stuck"], window["requests"], window["failures"]) == (0, 1, 1)
        assert failed == ["timeout"]
    finally:
        watchdog.stop()
        registry.close()
