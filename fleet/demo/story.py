"""What happens in the demonstration, in order, and what came of it.

Every number in the result was measured in this run. Two things are arranged, and said so on the screen: the first
real device is named so that the cohort hash puts it among the canaries of both rollouts, so that there is something
to see; and the simulated devices misbehave at the rate that the broken bundle showed on real images beforehand.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agent.bundle.folder import read_bundle
from agent.trust.cohort import in_cohort
from fleet.cli.client import FleetClient
from fleet.demo.digits import DigitsSplit, Variant, load_split, write_project
from fleet.demo.processes import Processes, free_port, run_fleet, wait_for_json
from fleet.demo.result import DemoResult, RolloutResult, summarise
from fleet.demo.settings import DemoOptions, agent_toml, fleet_toml, scenario_toml
from fleet.demo.traffic import Traffic
from fleet.errors import ServerError

__all__ = ["Narrator", "Story"]

VERSIONS: Final = (
    ("1.0.0", Variant.FEW_ROWS, "trained on 60 images"),
    ("2.0.0", Variant.ALL_ROWS, "trained on all 1,078 training images"),
    ("3.0.0", Variant.FORGOTTEN_SCALING, "the same weights, exported without their scaling step"),
)
FIRST_STAGE_BP: Final = 500
ENDED: Final = ("promoted", "rolled_back", "aborted")
_POLL_S: Final = 0.25
_START_TIMEOUT_S: Final = 120.0
_ROLLOUT_TIMEOUT_S: Final = 300.0
_SETTLE_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Narrator:
    """How the story is told: ``headline`` opens a chapter, ``line`` adds to it, ``progress`` is overwritten."""

    headline: Callable[[str], None]
    line: Callable[[str], None]
    progress: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Built:
    """A bundle of the demo: where it is and what it is called."""

    version: str
    folder: Path
    manifest_sha256: str
    note: str
    offline_accuracy: float
    violation_rate: float


@dataclass(slots=True)
class Story:
    """One run. ``tell`` starts everything, tells the story, stops everything and returns the result."""

    options: DemoOptions
    say: Narrator
    _clients: ExitStack = field(default_factory=ExitStack)

    def tell(self) -> DemoResult:
        """Run the demonstration.

        Raises:
            ConfigError: a library of the ``demo`` extra is missing.
            ServerError: a process died or a step did not come to its end in time.
        """
        started = time.monotonic()
        with ExitStack() as stack:
            folder = self.options.folder
            if folder is None:
                folder = Path(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix="muster-demo-"))
                )
            folder.mkdir(parents=True, exist_ok=True)
            processes = Processes(folder)
            stack.callback(processes.stop)
            split = load_split()
            built = self._build(folder, split)
            client = stack.enter_context(self._start_fleet(folder, processes))
            devices = self._start_devices(folder, processes, built)
            traffic = Traffic(split, self.options.requests_per_s)
            stack.callback(traffic.stop)
            traffic.start(devices)
            rollouts = self._rollouts(client, processes, built, traffic)
            traffic.stop()
            processes.check()
            fleet_size = len(client.get_json("/v1/devices")["devices"])
            return summarise(
                rollouts,
                traffic,
                {one.version: one.offline_accuracy for one in built},
                fleet_size=fleet_size,
                duration_s=time.monotonic() - started,
            )

    def _build(self, folder: Path, split: DigitsSplit) -> list[Built]:
        self.say.headline("Train and build three versions of a digits classifier")
        built = []
        for version, variant, note in VERSIONS:
            project = write_project(folder / "projects" / version, version, variant, split)
            out = folder / "bundles" / version
            answer = run_fleet("bundle", "build", str(project), "--out", str(out))
            accuracy, violations = on_test_images(out, split)
            built.append(
                Built(version, out, str(answer["manifest_sha256"]), note, accuracy, violations)
            )
            self.say.line(f"digits {version}: {note}; {accuracy:.1%} right on the test images")
        return built

    def _start_fleet(self, folder: Path, processes: Processes) -> FleetClient:
        self.say.headline("Start the fleet manager with its embedded broker")
        home = folder / "fleet"
        run_fleet("init", str(home), "--name", "demo")
        (home / "fleet.toml").write_text(fleet_toml(), encoding="utf-8")
        processes.start_fleet("fleet-serve", "serve", "--home", str(home))
        running = wait_for_json(home / "run.json", processes, _START_TIMEOUT_S)
        self.say.line(
            f"HTTP {running['http']}, gRPC {running['grpc']}, MQTT {running['mqtt']}; all on loopback"
        )
        return FleetClient(str(running["http"]), str(running["token"]))

    def _start_devices(
        self, folder: Path, processes: Processes, built: Sequence[Built]
    ) -> dict[str, str]:
        """Start agents and simulator; returns the real devices, id -> address of the model server."""
        options = self.options
        self.say.headline(
            f"Start {options.agents} agents with onnxruntime and {options.devices} simulated devices"
        )
        home = folder / "fleet"
        running = wait_for_json(home / "run.json", processes, _START_TIMEOUT_S)
        addresses = {}
        for name in self._agent_names(built):
            address = f"127.0.0.1:{free_port()}"
            config = folder / f"{name}.toml"
            config.write_text(agent_toml(name, folder, home, running, address), encoding="utf-8")
            processes.start_agent(name, "run", "--config", str(config))
            addresses[name] = address
        scenario = folder / "scenario.toml"
        scenario.write_text(
            scenario_toml(options.devices, built[-1].version, built[-1].violation_rate),
            encoding="utf-8",
        )
        processes.start_simulator("fleet-sim", "run", str(scenario), "--home", str(home))
        self.say.line(f"real: {', '.join(addresses)}")
        self.say.line(
            f"{next(iter(addresses))} is named so that the cohort hash makes it a canary of both rollouts"
        )
        return addresses

    def _agent_names(self, built: Sequence[Built]) -> list[str]:
        """The first is a canary of version 2 and of version 3; the others are called as they come."""
        canary = next(
            name
            for name in (f"camera-{number}" for number in range(1_000_000))
            if all(in_cohort(one.manifest_sha256, name, FIRST_STAGE_BP) for one in built[1:])
        )
        return [canary, *(f"camera-x{number}" for number in range(1, self.options.agents))]

    def _rollouts(
        self,
        client: FleetClient,
        processes: Processes,
        built: Sequence[Built],
        traffic: Traffic,
    ) -> list[RolloutResult]:
        first, better, broken = built
        expected = self.options.agents + self.options.devices
        self._wait_devices(client, processes, expected)
        bake_s = self.options.bake_s
        results = []
        for bundle, stages in (
            (first, ((10_000, bake_s),)),
            (better, ((FIRST_STAGE_BP, bake_s), (2_500, bake_s), (10_000, bake_s))),
            (broken, ((FIRST_STAGE_BP, bake_s), (2_500, bake_s), (10_000, bake_s))),
        ):
            words = " -> ".join(f"{percent_bp / 100:g}" for percent_bp, _ in stages)
            self.say.headline(f"Roll out digits {bundle.version} ({bundle.note}): {words} %")
            results.append(self._roll_out(client, processes, bundle, stages, traffic))
        return results

    def _wait_devices(self, client: FleetClient, processes: Processes, expected: int) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            processes.check()
            there = len(client.get_json("/v1/devices")["devices"])
            self.say.progress(f"{there} of {expected} devices have said hello")
            if there >= expected:
                self.say.line(f"{there} devices have said hello")
                return
            if time.monotonic() > deadline:
                raise ServerError(
                    f"only {there} of {expected} devices said hello within {_START_TIMEOUT_S:.0f} s: "
                    f"see the logs in {processes.folder}"
                )
            time.sleep(_POLL_S)

    def _roll_out(
        self,
        client: FleetClient,
        processes: Processes,
        bundle: Built,
        stages: Sequence[tuple[int, float]],
        traffic: Traffic,
    ) -> RolloutResult:
        published = run_fleet(
            "bundle", "publish", str(bundle.folder), "--server", client.server,
            home=processes.folder / "fleet",
        )  # fmt: skip
        began = time.monotonic()
        spec = {
            "bundle": published["path"],
            "stages": [{"percent_bp": bp, "bake_s": bake_s} for bp, bake_s in stages],
            "guards": {"min_installs": 3, "min_requests": 50, "silence_s": 90.0},
        }
        rollout_id = str(client.post_json("/v1/rollouts", spec)["id"])
        state = self._follow(client, processes, rollout_id, began)
        ended = time.monotonic()
        self._settle(client, processes, rollout_id, str(state["state"]))
        exposed = [row for row in deployments(client, rollout_id) if served(row)]
        self.say.line(f"after {ended - began:.0f} s {state['reason']}")
        return RolloutResult(
            id=rollout_id,
            version=bundle.version,
            state=str(state["state"]),
            reason=str(state["reason"]),
            exposed_devices=len(exposed),
            began_s=began,
            ended_s=ended,
            settled_s=time.monotonic(),
        )

    def _follow(
        self, client: FleetClient, processes: Processes, rollout_id: str, began: float
    ) -> Mapping[str, Any]:
        """Poll until the rollout has ended, telling each stage and each new reason once."""
        told: tuple[Any, ...] = ()
        while True:
            processes.check()
            state: Mapping[str, Any] = client.get_json(f"/v1/rollouts/{rollout_id}")
            if state["state"] in ENDED:
                return state
            now = (state["stage"], state["reason"])
            if now != told:
                told = now
                percent = state["spec"]["stages"][state["stage"]]["percent_bp"] / 100
                self.say.progress(f"{percent:g} %: {state['reason'] or 'started'}")
            if time.monotonic() - began > _ROLLOUT_TIMEOUT_S:
                raise ServerError(
                    f"rollout {rollout_id} did not end within {_ROLLOUT_TIMEOUT_S:.0f} s; it says: "
                    f"{state['reason']}. See the logs in {processes.folder}"
                )
            time.sleep(_POLL_S)

    def _settle(
        self, client: FleetClient, processes: Processes, rollout_id: str, state: str
    ) -> None:
        """After a rollback: until no device serves the bundle any more. Then a moment of steady traffic."""
        deadline = time.monotonic() + _SETTLE_TIMEOUT_S
        while state == "rolled_back" and any(
            row["outcome"] not in ("reverted", "refused", "cancelled")
            for row in deployments(client, rollout_id)
        ):
            processes.check()
            if time.monotonic() > deadline:
                raise ServerError(
                    f"devices still serve the bundle {_SETTLE_TIMEOUT_S:.0f} s after its rollback"
                )
            time.sleep(_POLL_S)
        time.sleep(self.options.steady_s)


def deployments(client: FleetClient, rollout_id: str) -> list[Mapping[str, Any]]:
    """The newest known step of every device in a rollout."""
    rows: list[Mapping[str, Any]] = client.get_json(f"/v1/rollouts/{rollout_id}/deployments")[
        "deployments"
    ]
    return rows


def served(row: Mapping[str, Any]) -> bool:
    """Whether a device has answered requests with the bundle, however briefly."""
    return row["outcome"] in ("committed", "reverted") or row["phase"] in (
        "swap",
        "probation",
        "commit",
    )


def on_test_images(folder: Path, split: DigitsSplit) -> tuple[float, float]:
    """Accuracy of a bundle on every test image, and the share of them on which its outputs leave its own contract."""
    from agent.runtime.contract import check_outputs
    from agent.runtime.pipeline import Pipeline

    manifest, _ = read_bundle(folder)
    pipeline = Pipeline.load(folder, manifest)
    right = outside = 0
    for image, label in zip(split.test_images, split.test_labels, strict=True):
        outputs = pipeline.run({"image": image[None]})
        right += int(outputs["label"][0]) == int(label)
        outside += check_outputs(manifest.outputs, outputs).violations > 0
    count = len(split.test_labels)
    return round(right / count, 4), round(outside / count, 3)
