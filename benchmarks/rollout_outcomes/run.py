"""One fleet, and the rollouts of all cases in it: real ``fleet serve``, simulated devices, real agents with traffic.

Rules kept here: everything is started as a user starts it and ended with the run; rollouts that do not disturb each
other go side by side; what came of each is read from the fleet manager's own answers.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final

from agent.trust import in_cohort
from benchmarks.rollout_outcomes.cases import OBJECTIVE_MS, ORDINARY, Case, behaviours
from benchmarks.rollout_outcomes.model import write_project
from benchmarks.rollout_outcomes.traffic import Traffic
from fleet.demo.story import served
from fleet.rollout.gate.door import Verdict
from fleet.rollout.states import FINAL, State
from tests.support.daemon import Daemon, wait_until
from tests.support.fleet import Device, FleetHost

__all__ = ["Outcome", "Setting", "ended", "guards_of", "run_cases"]

_FIRST: Final = "1.0.0"
_FIRST_PROBATION_S: Final = (
    1.0  # a device takes one bundle after the other, and nobody looks at these
)
_MOST_NAMES: Final = 1_000_000
_MOST_PAGES: Final = 100
_IN_SCENARIO: Final = (
    "devices", "providers", "ramp_s", "window_s", "cohort_window_s", "requests_per_s",
)  # fmt: skip

SCENARIO: Final = """\
[devices]
count = {devices}
ramp_s = {ramp_s}
providers = "{providers}"

[run]
window_s = {window_s}
cohort_window_s = {cohort_window_s}

[traffic]
requests_per_s = {requests_per_s}

"""


@dataclass(frozen=True, slots=True)
class Setting:
    """How large and how long. Stages are (percent, bake seconds); ``guards`` those of every 2.0.0."""

    devices: int = 1000
    providers: str = "cpu,cpu,cpu,cpu,cuda"  # of which each simulated device has one
    agents: int = 3
    stages: tuple[tuple[float, float], ...] = ((10.0, 180.0), (100.0, 180.0))
    past_s: float = (
        150.0  # between the last 1.0.0 and the first 2.0.0: what devices are compared with
    )
    window_s: float = 60.0
    cohort_window_s: float = 30.0
    requests_per_s: float = 2.0
    rate: float = 1.0  # requests a second of each model on each real device
    ramp_s: float = 10.0
    probation_s: float = 10.0
    silence_s: float = 150.0
    deadline_s: float = 1800.0  # of one rollout
    guards: dict[str, Any] = field(
        default_factory=lambda: {
            "metrics": {
                "error_rate": 1.25,
                "over_latency_rate": 1.25,
                "output_drift": 1.5,
                "feedback_error_rate": 1.25,
            }
        }
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case."""

    case: Case
    ended: str
    reason: str
    guards: tuple[str, ...]
    minutes: float
    exposed: int
    real_exposed: int
    audit_equal: bool
    looks: int

    @property
    def is_right(self) -> bool:
        """It ended as it must, by a guard that may say so, for the right reason, and the audit agrees."""
        told = any(words in self.reason for words in self.case.says) or not self.case.says
        guarded = not self.case.guards or bool(set(self.guards) & set(self.case.guards))
        return self.ended in self.case.ends and told and guarded and self.audit_equal

    def to_json(self) -> dict[str, Any]:
        """Everything, with whether it is right."""
        return {
            "name": self.case.name,
            "fault": self.case.fault,
            "right": self.is_right,
            "ended": self.ended,
            "reason": self.reason,
            "guards": list(self.guards),
            "minutes": self.minutes,
            "exposed": self.exposed,
            "real_exposed": self.real_exposed,
            "audit_equal": self.audit_equal,
            "looks": self.looks,
        }


def run_cases(
    cases: Sequence[Case], setting: Setting, folder: Path, say: Callable[[str], None]
) -> list[Outcome]:
    """Run the cases in one fleet, in ``folder``; ``say`` is told how far it is."""
    waves = [
        [case for case in cases if not case.alone],
        *([case] for case in cases if case.alone),
    ]
    with _fleet(cases, setting, folder, say) as (host, bundles):
        outcomes: list[Outcome] = []
        for wave in filter(None, waves):
            outcomes += _roll_out(host, wave, bundles, setting, say)
        return outcomes


# --- the fleet ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Bundle:
    path: str
    manifest_sha256: str


@contextmanager
def _fleet(
    cases: Sequence[Case], setting: Setting, folder: Path, say: Callable[[str], None]
) -> Iterator[tuple[FleetHost, dict[str, _Bundle]]]:
    """A fleet in which every device serves 1.0.0 of all models and has a past; with the 2.0.0 by model."""
    host = FleetHost(folder / "home")
    host.init()
    with ExitStack() as stack:
        stack.callback(host.stop)
        host.start()
        first = _publish(host, folder, cases, setting, _FIRST)
        second = _publish(host, folder, cases, setting, "2.0.0")
        simulator = Daemon(folder / "simulator.log")
        stack.callback(simulator.kill)
        _start_simulator(simulator, host, cases, setting, folder)
        agents = _start_agents(stack, host, setting, folder, list(second.values()))
        expected = setting.devices + len(agents)
        wait_until(lambda: len(_devices(host)) >= expected, f"{expected} devices", 300)
        say(f"{expected} devices are there; 1.0.0 of {len(cases)} models goes to all of them")
        _bring_first(host, [one.path for one in first.values()], setting)
        models = [case.name for case in cases]
        for agent, model in product(agents, models):
            agent.wait_serving(model, _FIRST, setting.deadline_s)
        traffic = Traffic([one.address for one in agents], models, setting.rate)
        stack.callback(traffic.stop)
        say(f"all serve 1.0.0; {setting.past_s:g} s of ordinary life")
        threading.Event().wait(setting.past_s)
        yield host, second
        simulator.require_alive()
        say(f"real clients: {traffic.answered} answers, {traffic.failed} failed requests")


def _publish(
    host: FleetHost, folder: Path, cases: Sequence[Case], setting: Setting, version: str
) -> dict[str, _Bundle]:
    found = {}
    is_first = version == _FIRST
    probation_s = _FIRST_PROBATION_S if is_first else setting.probation_s
    for case in cases:
        faults = ORDINARY if is_first else case.faults
        name = (case.name, version)
        project = write_project(folder / "projects", name, faults, OBJECTIVE_MS, probation_s)
        out = folder / "bundles" / project.name
        built = host.command("bundle", "build", str(project), "--out", str(out), "--json")
        said = host.command("bundle", "publish", str(out), "--json")
        digest = str(json.loads(built.stdout)["manifest_sha256"])
        found[case.name] = _Bundle(str(json.loads(said.stdout)["path"]), digest)
    return found


def _start_simulator(
    simulator: Daemon, host: FleetHost, cases: Sequence[Case], setting: Setting, folder: Path
) -> None:
    scenario = folder / "scenario.toml"
    numbers = {name: getattr(setting, name) for name in _IN_SCENARIO}
    text = SCENARIO.format(**numbers) + behaviours(tuple(cases))
    scenario.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "simulator.entry", "run"]
    simulator.start([*command, str(scenario), "--home", str(host.home)])


def _start_agents(
    stack: ExitStack, host: FleetHost, setting: Setting, folder: Path, bundles: Sequence[_Bundle]
) -> list[Device]:
    """Real agents; each is named so that the first stages of two of the rollouts hold it."""
    share_bp = round(setting.stages[0][0] * 100)
    agents = []
    for number in range(setting.agents):
        wanted = [bundles[(2 * number + turn) % len(bundles)] for turn in (0, 1)]
        name = next(
            name
            for name in (f"real-{number}-{more}" for more in range(_MOST_NAMES))
            if all(in_cohort(one.manifest_sha256, name, share_bp) for one in wanted)
        )
        agent = Device(host, folder / name, name, window_s=setting.cohort_window_s)
        stack.callback(agent.daemon.kill)
        agent.start()
        agents.append(agent)
    return agents


def _bring_first(host: FleetHost, paths: Sequence[str], setting: Setting) -> None:
    """1.0.0 of every model to every device, looked at by nobody."""
    off = {"statistics": "off", "silence_s": 600.0, "max_install_failure_rate": 0.2}
    started = [host.start_rollout(path, [(100.0, 1.0)], **off) for path in paths]
    for rollout in started:
        host.wait_rollout(rollout, "promoted", setting.deadline_s)


def _devices(host: FleetHost) -> list[Any]:
    host.daemon.require_alive()
    found: list[Any] = host.get("/v1/devices")["devices"]
    return found


# --- the rollouts ---------------------------------------------------------------------------------


def _roll_out(
    host: FleetHost,
    wave: Sequence[Case],
    bundles: Mapping[str, _Bundle],
    setting: Setting,
    say: Callable[[str], None],
) -> list[Outcome]:
    """Start the rollouts of these cases at once and wait for the end of all."""
    stages = [{"percent_bp": round(p * 100), "bake_s": bake_s} for p, bake_s in setting.stages]
    running = {}
    for case in wave:
        guards = {"silence_s": setting.silence_s, **setting.guards}
        spec = {"bundle": bundles[case.name].path, "stages": stages, "guards": guards}
        running[str(host.post("/v1/rollouts", spec)["id"])] = case
    said: dict[str, str] = {}

    def over() -> bool:
        host.daemon.require_alive()
        rollouts = {rollout: host.rollout(rollout) for rollout in running}
        for rollout, found in rollouts.items():
            now = f"{running[rollout].name}: {found['state']}, stage {found['stage'] + 1}"
            if said.get(rollout) != now:
                said[rollout] = now
                say(f"{now}: {found['reason']}")
        return all(found["state"] in FINAL for found in rollouts.values())

    wait_until(over, "the end of every rollout", setting.deadline_s)
    return [_outcome(host, rollout, case) for rollout, case in running.items()]


def _outcome(host: FleetHost, rollout: str, case: Case) -> Outcome:
    found = host.rollout(rollout)
    trail = host.get(f"/v1/rollouts/{rollout}/decisions")["decisions"]
    told = next((one for one in trail if one["verdict"] == "fail"), None)
    decision = told or next(one for one in trail if one["to_state"] == found["state"])
    audit = host.get(f"/v1/rollouts/{rollout}/audit")
    exposed = [row for row in _deployments(host, rollout) if served(row)]
    return Outcome(
        case=case,
        ended=ended(found["state"], found["stopped"]),
        reason=str(decision["reason"]),
        guards=tuple(guards_of(decision)) if told else (),
        minutes=round((decision["at_s"] - found["created_s"]) / 60, 1),
        exposed=len(exposed),
        real_exposed=sum(str(row["device_id"]).startswith("real-") for row in exposed),
        audit_equal=bool(audit["equal"]),
        looks=len(audit["looks"]),
    )


def ended(state: str, stopped: Sequence[str]) -> str:
    """How a rollout ended, in words; one that went on without a stratum has its own."""
    return "stratum stopped" if stopped and state == State.PROMOTED else state.replace("_", " ")


def guards_of(decision: Mapping[str, Any]) -> list[str]:
    """The guards that failed the stage, or that wanted a stratum stopped."""
    findings = decision["evidence"].get("findings", [])
    return [
        one["guard"]
        for one in findings
        if one["verdict"] == Verdict.FAIL or one["evidence"].get("stop_strata")
    ]


def _deployments(host: FleetHost, rollout: str) -> Iterator[Mapping[str, Any]]:
    after = ""
    for _ in range(_MOST_PAGES):
        page = host.get(f"/v1/rollouts/{rollout}/deployments?after={after}")
        yield from page["deployments"]
        after = page["next"]
        if not after:
            return
