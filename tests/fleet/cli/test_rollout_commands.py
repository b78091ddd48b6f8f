"""`fleet rollout ...`, `fleet device ...` and `fleet status` against a fleet manager that listens."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from fleet.cli.client import FleetClient
from fleet.errors import RequestError
from tests.fleet.cli.conftest import Served, Until
from tests.fleet.rollout.fleet_rows import DEVICES

QUICK = (
    "--stage",
    "50%:0s",
    "--stage",
    "100%:0s",
    "--guard",
    "min_requests=50",
    "--guard",
    "min_installs=3",
)


@pytest.fixture
def fleet(served: Served) -> Served:
    served.lab.register(labels={"region": "north"})
    return served


def lines(result: Result) -> list[dict[str, Any]]:
    """What a watch has written: a line of JSON a change."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def start(fleet: Served, path: str, *more: str) -> str:
    result = fleet.run("rollout", "start", path, *QUICK, *more, "--json")
    assert result.exit_code == 0, result.output
    return str(json.loads(result.stdout)["id"])


def test_a_good_bundle_is_watched_to_its_promotion(fleet: Served, until: Until) -> None:
    release = fleet.lab.release("1")
    planned = fleet.run("rollout", "plan", release.path, *QUICK)
    assert planned.exit_code == 0, planned.output
    assert f"{release.path} to 40 devices (40 reachable now), at least 0s" in planned.stdout
    assert "warning: nothing was promoted before" in planned.stdout

    rollout = start(fleet, release.path)
    fleet.lab.installed(release, rollout, DEVICES)
    fleet.lab.window(release, rollout, DEVICES)
    waited = fleet.run("rollout", "watch", rollout, "--every", "0.05", "--timeout", "300ms")
    assert waited.exit_code == 2  # a unit it does not know
    assert "--timeout = '300ms' is no duration" in waited.stderr
    # Stage 2 wants a window of its own.
    until(lambda: "holding: 0 of 40" in fleet.run("rollout", "status", rollout).stdout)
    held = fleet.run("rollout", "watch", rollout, "--every", "0.05", "--timeout", "1s")
    assert held.exit_code == 4, held.output
    last = lines(held)[-1]
    assert (last["state"], last["final"], last["stage"]) == ("running", False, 2)
    assert last["reason"].startswith("holding: 0 of 40 canary devices")
    words = "32 more canary devices committed and reported (0 of 40 so far)"
    assert last["waits"][0] == {"guard": "coverage", "words": words, "until_s": None}
    fleet.lab.window(release, rollout, DEVICES)
    ended = fleet.run("rollout", "watch", "--every", "0.05", "--timeout", "90s")
    assert ended.exit_code == 0, ended.output
    reason = lines(ended)[-1]["reason"]
    assert reason.startswith("promoted: 40 of 40 canary devices have committed and reported;")
    told = [(line["state"], line["stage"], line["reason"]) for line in lines(ended)]
    looks = [(line["comparison"] or {}).get("number") for line in lines(ended)]
    both = list(zip(told, looks, strict=True))
    assert all(one != other for one, other in itertools.pairwise(both))  # a line a change


def test_a_bad_bundle_is_watched_to_its_rollback(fleet: Served) -> None:
    release = fleet.lab.release("1")
    rollout = start(fleet, release.path)
    fleet.lab.failed(release, rollout, DEVICES, "refused", "trial_golden_failed")
    ended = fleet.run("rollout", "watch", rollout, "--every", "0.05", "--json")
    assert ended.exit_code == 3, ended.output
    found = lines(ended)[-1]
    assert found["state"] == "rolled_back"
    assert found["final"] is True
    assert {device["standing"] for device in found["failed_devices"]} == {"refused"}

    shown = fleet.run("rollout", "status", rollout)
    assert "Devices that failed or went back" in shown.stdout
    assert "trial_golden_failed" in shown.stdout
    trail = fleet.run("rollout", "audit", rollout)
    assert trail.exit_code == 0
    assert "rolled back in stage 1 of 2 (50 %)" in trail.stdout
    listed = fleet.run("rollout", "list", "--state", "rolled_back")
    assert "rolled back" in listed.stdout


def test_start_and_watch_in_one(fleet: Served) -> None:
    release = fleet.lab.release("1")
    fleet.lab.failed(release, "r1", DEVICES, "reverted", "error_rate")  # what will be reported
    done = fleet.run("rollout", "start", release.path, *QUICK, "--watch")
    assert done.exit_code == 3, done.output
    assert f"r1: {release.path} started at 50 %" in done.stderr
    assert lines(done)[-1]["state"] == "rolled_back"


def test_an_operator_pauses_resumes_aborts_and_takes_back(fleet: Served, until: Until) -> None:
    release = fleet.lab.release("1")
    rollout = start(fleet, release.path)
    paused = fleet.run("rollout", "pause", rollout, "--reason", "lunch")
    assert paused.stdout == "r1: paused by an operator: lunch\n"
    assert fleet.lab.signed.repository.directives()[0].halt
    refused = fleet.run("rollout", "pause", rollout)
    assert refused.exit_code == 1
    assert "rollout r1 is paused: pause is not possible" in refused.stderr.replace("\n", " ")
    assert fleet.run("rollout", "resume", rollout).exit_code == 0
    assert fleet.run("rollout", "abort", rollout).exit_code == 0
    ended = fleet.run("rollout", "watch", rollout)
    assert ended.exit_code == 1
    back = fleet.run("rollout", "rollback", rollout, "--json")
    assert json.loads(back.stdout)["state"] == "rolled_back"
    assert fleet.lab.signed.repository.directives()[0].kind == "rollback"
    assert fleet.run("rollout", "watch", rollout).exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("rollout", "start", "bundles/cam/digits-9"), 1, "bundles/cam/digits-9 is not published"),
        (("rollout", "start", "digits-9"), 2, "write it as bundles/CLASS/MODEL-VERSION"),
        (("rollout", "start"), 2, "which bundle?"),
        (("rollout", "plan", "bundles/cam/a-1", "--stage", "50%:1m"), 2, "it must be 100 %"),
        (("rollout", "plan", "bundles/cam/a-1", "--stage", "50%"), 2, "write PERCENT:BAKE"),
        (("rollout", "plan", "bundles/cam/a-1", "--guard", "max_error_rte=1"), 2, "did you mean"),
        (("rollout", "plan", "bundles/cam/a-1", "--guard", "max_error_rate=x"), 2, "is no number"),
        (("rollout", "plan", "bundles/cam/a-1", "--select", "region"), 2, "write NAME=VALUE"),
        (("rollout", "start", "--file", "/no/such.toml"), 2, "/no/such.toml cannot be read"),
        (("rollout", "status", "r9"), 1, "there is no rollout 'r9': none has been started"),
        (("rollout", "watch"), 1, "there is no rollout 'latest'"),
        (("rollout", "abort", "r9"), 1, "there is no rollout 'r9'"),
        (("rollout", "approve", "r9"), 1, "there is no rollout 'r9'"),
        (("rollout", "advance", "r9", "--reason", "x"), 1, "there is no rollout 'r9'"),
        (("rollout", "stop", "r9", "--stratum", "cam/cpu"), 1, "there is no rollout 'r9'"),
        (("rollout", "audit", "r9"), 1, "there is no rollout 'r9'"),
        (
            ("rollout", "plan", "bundles/cam/a-1", "--stage", "50%:1m:blue"),
            2,
            "'blue' is not known",
        ),
        (("rollout", "plan", "bundles/cam/a-1", "--stage", "x devices:1m"), 2, "is no number"),
        (("rollout", "plan", "bundles/cam/a-1", "--strategy", "green"), 2, "one of canary, shadow"),
        (("rollout", "plan", "bundles/cam/a-1", "--exclude", "id"), 2, "write NAME=VALUE"),
        (("rollout", "plan", "bundles/cam/a-1", "--hold-back", "most"), 2, "a number of devices"),
        (("rollout", "list", "--state", "asleep"), 2, "state 'asleep' is not known"),
        (("device", "show", "cam-x"), 1, "no device 'cam-x'"),
    ],
)
def test_a_mistake_is_told(
    served: Served, arguments: tuple[str, ...], code: int, says: str
) -> None:
    result = served.run(*arguments)
    assert result.exit_code == code, result.output
    assert says in " ".join(result.stderr.split())
    as_json = served.run(*arguments, "--json")
    assert as_json.exit_code == code
    told = json.loads(as_json.stdout)
    assert told["exit_code"] == code
    assert says in told["message"]


def test_a_plan_that_cannot_work_is_refused_and_can_be_forced(fleet: Served) -> None:
    release = fleet.lab.release("1")
    tiny = ("--stage", "0.01%:1m", "--stage", "100%:1m")
    planned = fleet.run("rollout", "plan", release.path, *tiny)
    assert planned.exit_code == 3
    assert "problem: stage 1 (0.01 %) reaches 0 of 40 devices" in " ".join(planned.stdout.split())
    refused = fleet.run("rollout", "start", release.path, *tiny)
    assert refused.exit_code == 3
    assert "--force starts it all the same" in " ".join(refused.stderr.split())
    assert fleet.run("rollout", "start", release.path, *tiny, "--force").exit_code == 0


def test_a_rollout_file_and_flags_over_it(fleet: Served, tmp_path: Path) -> None:
    release = fleet.lab.release("1")
    file = tmp_path / "rollout.toml"
    file.write_text(
        'bundle = "bundles/cam/other-1"\n[selector]\nregion = "north"\n'
        "[[stage]]\npercent = 100\nbake = '1h'\n[guards]\nmin_devices = 3\nmax_error_rate = 0.2\n"
    )
    result = fleet.run(
        "rollout", "start", release.path, "--file", str(file),
        "--guard", "max_error_rate=0.01", "--install-deadline", "5m", "--hold-back", "0", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    spec = json.loads(result.stdout)["spec"]
    assert spec["bundle"] == release.path
    assert spec["model"] == "digits"
    assert spec["selector"] == {"region": "north"}
    assert spec["stages"] == [{"percent_bp": 10_000, "bake_s": 3600.0}]
    assert spec["guards"]["min_devices"] == 3
    assert spec["guards"]["max_error_rate"] == 0.01
    assert spec["install_deadline_s"] == 300.0


def test_devices(fleet: Served) -> None:
    release = fleet.lab.release("1")
    rollout = start(fleet, release.path)
    fleet.lab.installed(release, rollout, DEVICES[:1])
    fleet.lab.window(release, rollout, DEVICES[:1], failures=5)
    listed = fleet.run("device", "list")
    assert listed.exit_code == 0, listed.output
    assert "digits 1" in listed.stdout
    assert "region=north" in listed.stdout
    found = json.loads(fleet.run("device", "list", "--json", "--limit", "3").stdout)["devices"]
    assert len(found) == 3
    none = fleet.run("device", "list", "--label", "region=south")
    assert none.stdout.startswith("Devices: none; start one with")
    assert fleet.run("device", "list", "--label", "region").exit_code == 2
    shown = fleet.run("device", "show", DEVICES[0])
    assert shown.exit_code == 0, shown.output
    assert "x86_64" in shown.stdout
    assert "5 %" in shown.stdout
    detail = json.loads(fleet.run("device", "show", DEVICES[0], "--json").stdout)
    assert detail["deployments"][0]["rollout_id"] == rollout


def test_status(fleet: Served) -> None:
    empty = fleet.run("status")
    assert empty.exit_code == 0, empty.output
    assert "no rollout is under way" in empty.stdout
    release = fleet.lab.release("1")
    rollout = start(fleet, release.path)
    shown = fleet.run("status")
    assert "40 (0 connected)" in shown.stdout
    assert rollout in shown.stdout
    assert "1 running" in shown.stdout
    found: dict[str, Any] = json.loads(fleet.run("status", "--json").stdout)
    assert [one["id"] for one in found["active_rollouts"]] == [rollout]


def test_the_steps_of_a_rollout_come_in_pages(fleet: Served) -> None:
    release = fleet.lab.release("1")
    rollout = start(fleet, release.path)
    fleet.lab.installed(release, rollout, DEVICES)
    with FleetClient(fleet.server, fleet.token) as client:
        seen: list[str] = []
        after = ""
        while True:
            page = client.get_json(
                f"/v1/rollouts/{rollout}/deployments", {"limit": 15, "after": after}
            )
            seen += [row["device_id"] for row in page["deployments"]]
            after = page["next"]
            if not after:
                break
    assert seen == sorted(DEVICES)


def test_a_plan_tells_stages_bytes_hold_back_and_who_cannot(fleet: Served) -> None:
    release = fleet.lab.release("1")
    fleet.lab.register(["old-1"], hardware="x86_64", memory_bytes=1, disk_free_bytes=1)
    asked = (
        "--stage", "20 devices:10m", "--stage", "100%:10m:approval", "--hold-back", "10%",
        "--exclude", "id=cam-1", "--open-hours", "mon-fri 01:00-05:00", "--retries", "2",
        "--guard", "metrics.error_rate=1.5", "--guard", "statistics=auto",
    )  # fmt: skip
    planned = fleet.run("rollout", "plan", release.path, *asked, "--json")
    assert planned.exit_code == 0, planned.output
    found = json.loads(planned.stdout)
    assert found["stages"][0]["devices"] == 20
    assert found["held_back"]["devices"] == found["matching"] - found["stages"][1]["devices"]
    assert found["spec"]["guards"]["metrics"]["error_rate"] == 1.5
    assert (found["spec"]["retries"], found["spec"]["hold_back_bp"]) == (2, 1000)
    told = " ".join(fleet.run("rollout", "plan", release.path, *asked).stdout.split())
    assert "unknown: no baseline" in told
    held = found["held_back"]["devices"]
    assert f"until the last stage has baked: {held} devices (10 %), then the rest" in told
    assert "once approved" in told
    assert "left out by id=cam-1" in told
    assert "bytes on the wire: " in told


def test_an_operator_approves_goes_on_and_stops_a_stratum(fleet: Served) -> None:
    release = fleet.lab.release("1")
    fleet.lab.register(["gpu-1", "gpu-2"], execution_provider="cuda")
    started = fleet.run(
        "rollout", "start", release.path, "--stage", "50%:0s", "--stage", "80%:1h:approval",
        "--stage", "100%:1h", "--hold-back", "0", "--json",
    )  # fmt: skip
    assert started.exit_code == 0, started.output
    rollout = json.loads(started.stdout)["id"]
    assert fleet.run("rollout", "advance", rollout).exit_code == 2  # without a reason
    approved = fleet.run("rollout", "approve", rollout, "--reason", "seen")
    assert approved.stdout == "r1: stage 2 of 3 (80 %) approved by an operator: seen\n"
    gone_on = fleet.run("rollout", "advance", rollout, "--reason", "bench", "--json")
    assert json.loads(gone_on.stdout)["stage"] == 1
    stopped = fleet.run("rollout", "stop", rollout, "--stratum", "cam/cuda")
    assert stopped.stdout == "r1: cam/cuda stopped by an operator\n"
    unknown = fleet.run("rollout", "stop", rollout, "--stratum", "cam/npu")
    assert unknown.exit_code == 1
    shown = " ".join(fleet.run("rollout", "status", rollout).stdout.split())
    assert "stopped: cam/cuda" in shown
    with (
        FleetClient(fleet.server, fleet.token) as client,
        pytest.raises(RequestError, match="leave stratum"),
    ):
        client.post_json(f"/v1/rollouts/{rollout}/pause", {"stratum": "cam/cpu"})

    newer = fleet.lab.release("2")
    refused = fleet.run("rollout", "start", newer.path, *QUICK)
    assert refused.exit_code == 1
    assert "start this one with --supersede" in " ".join(refused.stderr.split())
    assert fleet.run("rollout", "start", newer.path, *QUICK, "--supersede").exit_code == 0
    ended = fleet.run("rollout", "watch", rollout)
    assert ended.exit_code == 1
    assert "halted: superseded with r2" in ended.stdout


def test_an_audit_makes_every_decision_again(fleet: Served) -> None:
    release = fleet.lab.release("1")
    rollout = start(fleet, release.path)
    fleet.lab.failed(release, rollout, DEVICES, "refused", "trial_golden_failed")
    assert fleet.run("rollout", "watch", rollout, "--every", "0.05").exit_code == 3
    done = fleet.run("rollout", "audit", rollout)
    assert done.exit_code == 0, done.output
    assert "decisions of the controller: equal" in done.stdout
    found = json.loads(fleet.run("rollout", "audit", rollout, "--json").stdout)
    assert found["audit"]["equal"] is True
    assert found["audit"]["decisions"][-1]["how"] == "replayed"
