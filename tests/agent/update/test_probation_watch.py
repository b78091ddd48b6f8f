"""What of the drained windows counts for a bundle on probation."""

from agent.bundle import Objectives
from agent.health.probation import ProbationVerdict
from agent.ports import ServedWindow
from agent.update.watch import ProbationWatch

SHA = "a" * 64
WAIT, PASS = ProbationVerdict.WAIT, ProbationVerdict.PASS


def test_a_bundle_does_not_pass_while_a_run_of_it_hangs() -> None:
    watch = ProbationWatch()
    watch.begin("m", SHA, Objectives(probation_s=5), 0.0)
    watch.observe([ServedWindow("m", "1", SHA, stuck=1)])
    judgement, _ = watch.judge("m", 6.0)
    assert (judgement.verdict, judgement.reason_code) == (WAIT, "probation_stuck")
    watch.observe([ServedWindow("m", "1", SHA, stuck=1)])
    watch.observe([ServedWindow("m", "1", SHA, requests=1)])  # it has ended after all
    assert watch.judge("m", 7.0)[0].verdict is PASS
