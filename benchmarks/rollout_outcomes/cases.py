"""The cases: what is wrong with a bundle on simulated and on real devices, and what must come of its rollout. Pure.

Rules kept here: one case is one model, so that rollouts go side by side and each has a past of its own; every 1.0.0 is
the same ordinary model with ordinary faults, and a 2.0.0 differs from it in one thing.
"""

from dataclasses import dataclass, replace
from typing import Final

from benchmarks.rollout_outcomes.model import LABELS, Faults

__all__ = ["CASES", "OBJECTIVE_MS", "ORDINARY", "Case", "behaviours"]

OBJECTIVE_MS: Final = 100.0
ORDINARY: Final = Faults(error=0.02, wrong=0.05)
_EVEN: Final = dict.fromkeys(LABELS, 1 / len(LABELS))
_MOVED: Final = {label: 0.4 if label == LABELS[0] else 0.2 for label in LABELS}


@dataclass(frozen=True, slots=True)
class Case:
    """One rollout.

    Attributes:
        name: of the case, and of its model.
        fault: in words.
        faults: of the real bundle.
        simulated: keys of ``[[model]]`` in which 2.0.0 differs on simulated devices.
        ends: how it may end: promoted, rolled back, stratum stopped.
        guards: one of which must have said so; none for a promotion.
        says: one of these is in the reason.
        alone: it would disturb the others, so it goes after them.
    """

    name: str
    fault: str
    faults: Faults
    simulated: str
    ends: tuple[str, ...] = ("rolled back",)
    guards: tuple[str, ...] = ("comparison",)
    says: tuple[str, ...] = ()
    alone: bool = False


_FAILED_DEVICES: Final = ("install_failures", "outcomes")

CASES: Final = (
    Case("good", "none", ORDINARY, "", ("promoted",), (), ("promoted",)),
    Case(
        "errors",
        "2x errors (2 % to 4 %)",
        replace(ORDINARY, error=0.04),
        "error_rate = 0.04",
        says=("failed requests",),
    ),
    Case(
        "slow",
        "over the latency objective 2 % to 10 % of the time",
        replace(ORDINARY, slow=True),
        "over_objective_rate = 0.1",
        says=("over the latency objective",),
    ),
    Case(
        "drift",
        "answers one label 40 % of the time, not 25 %",
        replace(ORDINARY, drift=0.2),
        f"outputs = {{ {', '.join(f'{label} = {share}' for label, share in _MOVED.items())} }}",
        says=("drift of the outputs",),
    ),
    Case(
        "feedback",
        "wrong 15 % of the time, not 5 %; nothing else shows it",
        replace(ORDINARY, wrong=0.15),
        "wrong_rate = 0.15",
        says=("answers that feedback calls wrong",),
    ),
    Case(
        "dead",
        "every request fails",
        replace(ORDINARY, error=1.0),
        "error_rate = 1.0",
        guards=(*_FAILED_DEVICES, "error_rate", "comparison"),
        says=("probation_error_rate", "error rate", "failed requests"),
    ),
    Case(
        "crash",
        "the model server dies of it, on devices with cuda alone",
        ORDINARY,
        'provider = "cuda"\ncrash_after_s = 1',
        ("stratum stopped",),
        _FAILED_DEVICES,
        ("crash", "gone back", "went back", "reverted"),
    ),
    Case(
        "silent",
        "devices send nothing once they have it",
        ORDINARY,
        "silent_after_commit = true",
        guards=(*_FAILED_DEVICES, "silence"),
        says=("silent",),
        alone=True,
    ),
)


def behaviours(cases: tuple[Case, ...]) -> str:
    """The ``[[model]]`` tables of a scenario in which every 2.0.0 has its fault."""
    shares = ", ".join(f"{label} = {share}" for label, share in _EVEN.items())
    usual = {
        "error_rate": f"{ORDINARY.error}",
        "over_objective_rate": "0.02",
        "feedback_share": "0.2",
        "wrong_rate": f"{ORDINARY.wrong}",
        "outputs": f"{{ {shares} }}",
    }
    tables = [
        _table({"model": f'"{case.name}"', "version": '"2.*"'}, usual, case) for case in cases
    ]
    return "\n".join([*tables, _table({}, usual, None)])


def _table(about: dict[str, str], usual: dict[str, str], case: Case | None) -> str:
    lines = [] if case is None else case.simulated.splitlines()
    own = dict(line.split(" = ", 1) for line in lines if line)
    keys = {**about, **usual, **own}
    return "[[model]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
