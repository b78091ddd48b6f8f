"""The worlds of the study, and one rollout in one of them, judged by everybody.

All rules get the same devices and the same requests. A rollout has rings of 1, 5 and 25 % of 2,000
devices, an hour each, and goes on for as long as any rule has let it; what a rule does not see any
more, because it has rolled back, does not count. Nothing of one rollout is used in another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import numpy as np

from fleet.rollout.gate.opening import RingPlan
from fleet.rollout.gate.verdict import Verdict
from simulator.virtual import Candidate, Incident, Population, Setting, VirtualWorld, Windows
from simulator.virtual.ours import GateOverRing
from simulator.virtual.peers import Minutes, peers, strict_peers, tally_minutes

DEVICES: Final = 2000
RINGS: Final = (0.01, 0.05, 0.25)  # share of the fleet
BAKE_S: Final = 3600.0
OURS: Final = "Muster's gate"


@dataclass(frozen=True, slots=True)
class StudyWorld:
    """``bad``: the bundle is worse, so a rollback is right."""

    words: str
    setting: Setting
    bad: bool


WORLDS: Final[Mapping[str, StudyWorld]] = {
    "same": StudyWorld("nothing changes", Setting(), False),
    "incident": StudyWorld(
        "nothing changes, and for 20 minutes everybody fails 5 times as often",
        Setting(incident=Incident(start_s=1200.0, duration_s=1200.0, error_factor=5.0)),
        False,
    ),
    "broken": StudyWorld(
        "nothing changes, and 1 % of the devices are broken anyway",
        Setting(Population(broken_rate=0.01)),
        False,
    ),
    "x1.5": StudyWorld(
        "1.5 times the errors", Setting(candidate=Candidate(error_factor=1.5)), True
    ),
    "x2": StudyWorld("twice the errors", Setting(candidate=Candidate(error_factor=2.0)), True),
    "total": StudyWorld("every request fails", Setting(candidate=Candidate(error_floor=1.0)), True),
    "class": StudyWorld(
        "10 times the errors on the fifth of the devices that is of one class",
        Setting(
            Population(kinds={"edge/cpu": 0.8, "edge/gpu": 0.2}),
            Candidate(error_factor=10.0, only_kind="edge/gpu"),
        ),
        True,
    ),
}


def one_rollout(name: str, number: int) -> dict[str, Any]:
    """Rollout ``number`` in a world: for every rule the ring, minute and devices of its rollback, or None."""
    world_of = WORLDS[name]
    digest = sha256(f"gate study/{name}/{number}".encode()).digest()
    seed = int.from_bytes(digest[:8], "big")
    world = VirtualWorld(world_of.setting, DEVICES, seed)
    history = world.history()
    order = np.random.default_rng([seed, 1]).permutation(DEVICES)
    bad, total = history.bad["error_rate"], history.total["error_rate"]
    usual = float(bad.sum() / total.sum())
    rules = (*peers(usual), *strict_peers(usual))
    kinds = [world.characters.kind_names[kind] for kind in world.characters.kind]
    found: dict[str, Any] = {OURS: None}
    minutes: list[Minutes] = []
    for ring, share in enumerate(RINGS):
        devices = round(share * DEVICES)
        cohort = np.zeros(DEVICES, bool)
        cohort[order[:devices]] = True
        fast = np.zeros(DEVICES, bool)
        fast[order[: 2 * devices]] = True
        world.set_pace(fast)
        world.deploy(order[:devices])
        plan = RingPlan(
            f"{name}-{number}", ring, len(RINGS), world.now_s, BAKE_S, round(share * 10_000),
            ("error_rate",),
        )  # fmt: skip
        windows = None
        if found[OURS] is None:
            windows, minute = _ours(world, GateOverRing(plan, cohort, kinds, history))
            if minute is not None:
                found[OURS] = [ring, minute, devices]
        else:
            windows, _ = world.advance(world.now_s + BAKE_S)
        minutes.append(tally_minutes(windows, cohort, plan.started_s, round(BAKE_S / 60)))
        for rule in rules:
            if found.get(rule.name) is None:
                _judge(found, rule, minutes, devices)
        if all(rollback is not None for rollback in found.values()):
            break
    return {"world": name, "number": number, "found": found}


def _judge(found: dict[str, Any], rule: Any, minutes: list[Minutes], devices: int) -> None:
    """Ask a rule about the rings so far; rings to come are empty for it."""
    nothing = np.zeros(0, np.int64)
    to_come = [Minutes(nothing, nothing, nothing, nothing)] * (len(RINGS) - len(minutes))
    rollback = rule.judge([*minutes, *to_come])
    found[rule.name] = None if rollback is None else [rollback.ring, rollback.minute, devices]


def _ours(world: VirtualWorld, gate: GateOverRing) -> tuple[Windows, float | None]:
    """Let the ring run with looks of the gate; all its windows, and the minute of the first alarm."""
    parts, minute = [], None
    start_s, end_s = world.now_s, world.now_s + BAKE_S
    for number, look_s in enumerate(gate.looks_s, 1):
        windows, _ = world.advance(look_s)
        parts.append(windows)
        if minute is not None:
            continue
        gate.add(windows)
        result = gate.look(number)
        if result.verdict is Verdict.FAIL or result.stopped:
            minute = (look_s - start_s) / 60.0
    parts.append(world.advance(end_s)[0])
    return Windows.joined(parts), minute
