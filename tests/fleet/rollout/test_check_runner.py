"""Checks asked over real HTTP, beside the executor, over a real database."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import update

from agent.trust import BundleRelease
from fleet.rollout import check_runner, records
from fleet.rollout.check_answers import prune_answers, read_answers
from fleet.rollout.check_runner import CheckLimits, CheckRunner
from fleet.rollout.snapshot import CheckAnswer
from fleet.rollout.spec import Check
from fleet.rollout.states import Event, State
from fleet.store.tables import rollouts
from fleet.store.writer import Writer
from tests.fleet.rollout.fleet_rows import Lab, asked
from tests.support.receiver import Receiver, Reply, receiving


@pytest.fixture(scope="module")
def listening() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def receiver(listening: Receiver) -> Receiver:
    listening.reset()
    return listening


class CheckLab(Lab):
    """A lab with a rollout that is checked."""

    def watch(self, *checks: Check) -> None:
        self.checks = checks
        self.writer = Writer(self.store)
        self.runner = CheckRunner(
            self.store,
            self.writer,
            now_s=lambda: self.now_s,
            limits=CheckLimits(answer_bytes=1000),
        )

    async def begin(self) -> BundleRelease:
        release = self.release("1")
        spec = replace(asked(release, 5000, 10_000), checks=self.checks)
        await self.executor.start(spec)
        return release

    async def ask(self) -> int:
        async with asyncio.TaskGroup() as tasks:
            return await self.runner.ask_due(tasks)

    def answers(self) -> list[CheckAnswer]:
        with self.store.read() as connection:
            return list(read_answers(connection, records.get_rollout(connection, "r1")))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[CheckLab]:
    lab = CheckLab(tmp_path)
    lab.register()
    yield lab
    lab.writer.close()


def check(receiver: Receiver, path: str = "/gate?team=a", timeout_s: float = 60.0) -> Check:
    return Check(f"{receiver.url}{path}", timeout_s=timeout_s, every_s=30.0)


async def test_a_check_is_asked_every_so_often_and_its_no_rolls_back(
    lab: CheckLab, receiver: Receiver
) -> None:
    lab.watch(check(receiver))
    await lab.begin()
    assert await lab.ask() == 1
    assert await lab.ask() == 0
    asked_for = urlsplit(receiver.got[0].path)
    said = {key: values[0] for key, values in parse_qs(asked_for.query).items()}
    assert asked_for.path == "/gate"
    assert (said["team"], said["rollout"], said["stage"], said["stages"]) == ("a", "r1", "1", "2")
    assert [answer.verdict for answer in lab.answers()] == ["pass"]
    lab.now_s += 30
    receiver.replies = [Reply(200, b'{"verdict": "fail", "reason": "the plant reports jams"}')]
    assert await lab.ask() == 1
    await lab.executor.tick()
    snapshot, _, entries = await lab.executor.observe("r1")
    assert snapshot.rollout.state is State.ROLLED_BACK
    assert "says fail: the plant reports jams" in entries[0].reason
    assert await lab.ask() == 0  # it is over
    with lab.store.begin() as connection:
        assert prune_answers(connection) == 1


async def test_what_goes_wrong_holds_and_says_so(lab: CheckLab, receiver: Receiver) -> None:
    late = threading.Event()
    receiver.usual = Reply(200, b"x" * 2000)
    checks = (check(receiver, "/large"), Check("http://127.0.0.1:1/", 60.0, 30.0))
    lab.watch(*checks)
    await lab.begin()
    assert await lab.ask() == 2
    said = {answer.url: (answer.verdict, answer.reason) for answer in lab.answers()}
    assert said[checks[0].url] == ("hold", "its answer has more than 1000 bytes")
    assert said[checks[1].url][0] == "hold"
    assert said[checks[1].url][1].startswith("ConnectError: ")
    receiver.replies = [Reply(waits=late)]
    lab.now_s += 30
    lab.watch(check(receiver, "/large", timeout_s=0.2))
    with lab.store.begin() as connection:
        rollout = records.get_rollout(connection, "r1")
    try:
        answer = await lab.runner._answer(rollout, lab.checks[0])
    finally:
        late.set()
    assert answer == ("hold", "no answer within 0.2 s")


async def test_a_slow_check_is_asked_once_and_delays_no_other(
    lab: CheckLab, receiver: Receiver
) -> None:
    late = threading.Event()
    receiver.replies = [Reply(200, waits=late)]
    lab.watch(check(receiver, "/slow"), check(receiver, "/quick"))
    await lab.begin()
    async with asyncio.TaskGroup() as tasks:
        assert await lab.runner.ask_due(tasks) == 2
        while len(lab.answers()) < 1:
            await asyncio.sleep(0.01)
        assert await lab.runner.ask_due(tasks) == 0  # still under way
        late.set()
    assert len(lab.answers()) == 2
    assert len(receiver.got) == 2


async def test_a_new_run_of_the_stage_is_asked_anew(lab: CheckLab, receiver: Receiver) -> None:
    lab.watch(check(receiver))
    await lab.begin()
    await lab.ask()
    lab.now_s += 1
    await lab.executor.change("r1", Event.PAUSE)
    assert await lab.ask() == 0
    await lab.executor.change("r1", Event.RESUME)
    assert lab.answers() == []
    assert await lab.ask() == 1


async def asked_alone(lab: CheckLab, check: Check) -> tuple[str, str]:
    lab.watch(check)
    await lab.begin()
    assert await lab.ask() == 1
    (answer,) = lab.answers()
    return answer.verdict, answer.reason


async def test_a_redirect_is_not_followed_wherever_it_leads(
    lab: CheckLab, receiver: Receiver
) -> None:
    receiver.replies = [Reply(302, headers={"location": f"{receiver.url}/pass"})]
    assert await asked_alone(lab, check(receiver)) == ("hold", "it answered with status 302")
    assert [got.path.partition("?")[0] for got in receiver.got] == ["/gate"]


async def test_ipv6_and_localhost_are_this_machine_and_no_proxy_is_asked(
    lab: CheckLab, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    port = urlsplit(receiver.url).port
    with receiving(host="::1") as six:
        lab.watch(check(six), Check(f"http://localhost:{port}/gate", every_s=30.0))
        await lab.begin()
        assert await lab.ask() == 2
    assert {answer.verdict for answer in lab.answers()} == {"pass"}
    assert len(six.got) == len(receiver.got) == 1


async def test_what_was_stored_before_it_was_refused_is_not_asked_and_holds(
    lab: CheckLab, receiver: Receiver
) -> None:
    """The plan refuses such a check; this one is in a database from before."""
    lab.watch(check(receiver))
    await lab.begin()
    with lab.store.begin() as connection:
        stored = records.get_rollout(connection, "r1").spec.to_json()
        (kept,) = stored["checks"]
        kept["url"] = kept["url"].replace("127.0.0.1", "10.255.255.1")
        connection.execute(update(rollouts).values(spec=stored))
    assert await lab.ask() == 1
    (answer,) = lab.answers()
    assert answer.verdict == "hold"
    assert "is not asked: its address is plain http beyond this machine" in answer.reason
    assert "plain_http = true" in answer.reason


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_name_that_led_beyond_this_machine_counts_only_where_that_is_allowed(
    lab: CheckLab, receiver: Receiver, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hosts file can send localhost anywhere; the far end of the connection is what is believed."""
    monkeypatch.setattr(check_runner, "is_this_machine", lambda _address: False)
    url = receiver.url.replace("127.0.0.1", "localhost")
    verdict, reason = await asked_alone(lab, Check(url, every_s=30.0, plain_http=allowed))
    assert (verdict, "led beyond this machine" in reason) == (
        "pass" if allowed else "hold",
        not allowed,
    )
