"""Models that crash, hang, leak, eat memory or answer NaN, on a real agent under a real fleet manager.

Two kinds: what a trial can meet never serves, and not one request fails; what waits for real inputs serves for a
moment, is reverted in its probation, and only its own answers were bad. Either way the bundle before it serves on, and
`fleet device show` says why.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.bundle import Objectives, Requirements
from tests.support.bad_models import (
    TRIGGER,
    crashing_model,
    greedy_when_triggered,
    hanging_when_triggered,
    hoarding_model,
    nan_when_triggered,
)
from tests.support.bombs import folded_memory
from tests.support.daemon import wait_until
from tests.support.fleet import Device, FleetHost
from tests.support.hammer import Hammer
from tests.support.onnx_models import BundleMaker, endless_model, hungry_model

MODEL, GOOD = "tiny", "1.0.0"
CALM = np.array([[0.0, 1.0, 2.0, 3.0]], dtype=np.float32)
FIERCE = CALM + np.float32(TRIGGER + 1)
PATIENCE_S = 90.0
ONE_CASE = [({"x": CALM}, {"y": CALM})]
MIB = 1 << 20
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def broker_address() -> str:
    """What a broker does changes nothing here: the embedded one is enough."""
    return "embedded"


@pytest.fixture(scope="module")
def device(fleet_host: FleetHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """One device for every test: each bad bundle comes after the ones before it, as in life."""
    budget = f"[health]\nmax_rss_bytes = {450 * MIB}\nsustained_s = 0\n"
    made = Device(fleet_host, tmp_path_factory.mktemp("victim"), "victim", extra=budget)
    made.start()
    try:
        made.wait_serving(MODEL, GOOD)
        yield made
    finally:
        made.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def bad(model: bytes, **changes: Any) -> BundleMaker:
    """A version of ``tiny`` with another model; no golden case unless one is given."""
    options: dict[str, Any] = {
        "objectives": Objectives(latency_ms=1000.0, probation_s=30.0),
        "requirements": Requirements(memory_bytes=64 * MIB),
        **changes,
    }
    return BundleMaker(
        models={"model.onnx": model},
        model=MODEL,
        version=f"6.6.{next(_numbers)}",
        device_class="edge",
        **options,
    )


def roll_out(host: FleetHost, device: Device, folder: Path, maker: BundleMaker) -> str:
    """Publish it unchecked, as from a build host where it did no harm, and send it to the device."""
    maker.write(folder)
    host.command("bundle", "publish", str(folder))
    return host.start_rollout(
        f"bundles/edge/{MODEL}-{maker.version}",
        [(100, 30.0)],
        device=device.id,
        max_install_failure_rate=0.3,
    )


def assert_refused(
    host: FleetHost, device: Device, folder: Path, maker: BundleMaker, *, code: str, says: str
) -> None:
    """Its trial refuses it, the rollout goes back, and the version before never failed a request."""
    pids = device.children()
    hammer = Hammer(device.address, MODEL, {"x": CALM})
    try:
        rollout = roll_out(host, device, folder, maker)
        step = host.wait_outcome(device.id, "refused", rollout)
        host.wait_rollout(rollout, "rolled_back")
        hammer.wait_for_more(20)
    finally:
        hammer.stop()
    assert step["reason_code"] == code, step
    assert not hammer.failures
    assert {version for version, _ in hammer.answers} == {GOOD}
    assert device.children() == pids, "the model server was restarted, or a trial was left behind"
    assert_shown(host, device, maker, says)


def assert_reverted(
    host: FleetHost,
    device: Device,
    folder: Path,
    maker: BundleMaker,
    *,
    code: str,
    says: str,
    patience_s: float = PATIENCE_S,
) -> None:
    """It serves until its probation sees what it does; the version before answers from then on."""
    hammer = Hammer(device.address, MODEL, {"x": FIERCE}, timeout_s=patience_s)
    try:
        rollout = roll_out(host, device, folder, maker)
        step = host.wait_outcome(device.id, "reverted", rollout)
        hammer.timeout_s = PATIENCE_S  # the good one answers; how fast is not what this is about
        hammer.wait_for_version(GOOD)
        failed = len(hammer.failures)
        hammer.wait_for_more(20)
    finally:
        hammer.stop()
    host.wait_rollout(rollout, "rolled_back")
    assert step["reason_code"] == code, step
    assert len(hammer.failures) == failed, "the version before fails requests after the revert"
    served_bad = [
        position for position, (version, _) in enumerate(hammer.answers) if version != GOOD
    ]
    assert served_bad or failed, "the bad version never met a request"
    for version, answer in hammer.answers:
        assert version != GOOD or np.isfinite(answer["y"]).all()
    assert_shown(host, device, maker, says)


def assert_shown(host: FleetHost, device: Device, maker: BundleMaker, says: str) -> None:
    """A person who asks about the device reads the reason beside the bundle, and what serves instead."""
    table = host.command("device", "show", device.id).stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines()]
    bundle = f"bundles/edge/{MODEL}-{maker.version}"
    reasons = []
    for number, row in enumerate(rows):
        if bundle in row and row[-2] in ("refused", "reverted"):
            wrapped = itertools.takewhile(lambda more: more and not more[0], rows[number + 1 :])
            reasons.append(" ".join([row[-1], *(more[-1] for more in wrapped)]))
    assert any(says in reason for reason in reasons), table
    assert any(row[:2] == [MODEL, GOOD] for row in rows), table


def test_a_model_that_crashes(fleet_host: FleetHost, device: Device, folder: Path) -> None:
    assert_refused(
        fleet_host, device, folder, bad(crashing_model()), code="trial_crashed", says="SIGSEGV"
    )


def test_a_model_that_hangs(fleet_host: FleetHost, folder: Path, tmp_path: Path) -> None:
    """On a device of its own, which gives a trial three seconds."""
    hurried = Device(fleet_host, tmp_path / "hurried", "hurried")
    hurried.start()
    try:
        # Only from here on: the trial of the good one takes as long as it does on a busy machine.
        fleet_host.wait_outcome(hurried.id, "committed")
        hurried.stop()
        hurried.extra = "[update]\ntrial_timeout_s = 3.0\n"
        hurried.start()
        hurried.wait_serving(MODEL, GOOD)
        assert_refused(
            fleet_host,
            hurried,
            folder,
            bad(endless_model()),
            code="trial_timeout",
            says="did not end within 3 s",
        )
    finally:
        hurried.stop()


def test_a_model_that_leaks(fleet_host: FleetHost, device: Device, folder: Path) -> None:
    """It keeps 4 MiB of each round of a loop that has a million."""
    assert_refused(
        fleet_host,
        device,
        folder,
        bad(hoarding_model()),
        code="trial_memory",
        says="more memory than the 64.0 MiB allowed",
    )


def test_a_model_that_eats_memory(fleet_host: FleetHost, device: Device, folder: Path) -> None:
    assert_refused(
        fleet_host,
        device,
        folder,
        bad(hungry_model(96 * MIB)),
        code="trial_memory",
        says="allowed are 64.0 MiB",
    )


def test_a_model_that_explodes_while_it_is_loaded(
    fleet_host: FleetHost, device: Device, folder: Path
) -> None:
    """Sixteen gigabytes of constants, from a file of two hundred bytes."""
    assert_refused(
        fleet_host,
        device,
        folder,
        bad(folded_memory()),
        code="trial_memory",
        says="more memory than the 64.0 MiB allowed",
    )


def test_a_model_that_answers_nan(fleet_host: FleetHost, device: Device, folder: Path) -> None:
    """Its golden case is calm; real inputs divide zero by zero."""
    assert_reverted(
        fleet_host,
        device,
        folder,
        bad(nan_when_triggered(), golden=ONE_CASE),
        code="probation_non_finite",
        says="had outputs that are not finite",
    )


def test_a_model_that_hangs_on_real_inputs(
    fleet_host: FleetHost, device: Device, folder: Path
) -> None:
    """Each of its runs is ended at its deadline, so that no thread of the server is lost. A run counts once it has
    ended, so its probation asks for some."""
    assert_reverted(
        fleet_host,
        device,
        folder,
        bad(
            hanging_when_triggered(),
            golden=ONE_CASE,
            objectives=Objectives(latency_ms=300.0, probation_s=4.0, probation_min_requests=2),
        ),
        code="probation_error_rate",
        says="failed: 100.00%",
        patience_s=1.0,
    )


def test_a_model_that_asks_for_too_much_on_real_inputs(
    fleet_host: FleetHost, device: Device, folder: Path
) -> None:
    """Four terabytes at once: the run fails, the model server lives."""
    assert_reverted(
        fleet_host,
        device,
        folder,
        bad(greedy_when_triggered(), golden=ONE_CASE),
        code="probation_error_rate",
        says="failed: 100.00%",
    )


def test_a_model_that_holds_on_to_memory_on_real_inputs(
    fleet_host: FleetHost, device: Device, folder: Path
) -> None:
    """Every answer is right; only what the device allows its models tells."""
    assert_reverted(
        fleet_host,
        device,
        folder,
        bad(greedy_when_triggered(600 * MIB), golden=ONE_CASE),
        code="probation_memory",
        says="allowed are 450 MiB",
    )


def test_a_model_that_holds_more_than_its_bundle_states(
    fleet_host: FleetHost, device: Device, folder: Path
) -> None:
    """The device has room for it; what the loaded bundles state together has not."""
    assert_reverted(
        fleet_host,
        device,
        folder,
        bad(greedy_when_triggered(270 * MIB), golden=ONE_CASE),
        code="probation_memory",
        says="its bundles state",
    )


def test_the_model_server_is_the_same_process_after_all_of_this(device: Device) -> None:
    """Nothing above cost the model server its life, and nothing of a trial is left."""
    wait_until(lambda: len(device.children()) == 1, "one child: the model server")
    assert "model server down" not in device.daemon.log.read_text()
