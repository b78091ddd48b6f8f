"""The uplink: reports leave the spool only when acknowledged, over whichever link works."""

import asyncio
import random
from contextlib import asynccontextmanager

import pytest

from agent.adapters.inbox import Inbox
from agent.errors import LinkError
from agent.health.spool import MemorySpool
from agent.ports import DownlinkMessage
from agent.uplink import LinkState, Uplink, UplinkLimits, choose
from protos import report_pb2
from tests.support.manual_clock import ManualClock

LIMITS = UplinkLimits(
    fallback_after_s=10, ack_timeout_s=15, retry_first_s=1, retry_most_s=60, probe_s=300
)


class FakeLink:
    """Up and down by hand; ``answers`` says whether somebody behind it acknowledges."""

    def __init__(self, name, *, answers=True):
        self.name = name
        self.answers = answers
        self.connected = False
        self.running = False
        self.connects_when_run = False
        self.inbox = Inbox(100)
        self.batches = []

    def set_connected(self, up):
        self.connected = up
        self.inbox.put(DownlinkMessage(connected=up))

    def messages(self):
        return self.inbox.messages()

    async def run(self):
        self.running = True
        if self.connects_when_run:
            self.set_connected(True)
        try:
            await asyncio.Event().wait()
        finally:
            self.running = False
            if self.connected:
                self.set_connected(False)

    async def send(self, batch):
        if not self.connected:
            raise LinkError("not connected")
        self.batches.append([report.seq for report in batch.reports])
        if self.answers:
            ids = [report_pb2.ReportId(boot_id=it.boot_id, seq=it.seq) for it in batch.reports]
            self.inbox.put(DownlinkMessage(ack=report_pb2.ReportAck(ids=ids)))


def report(seq):
    event = report_pb2.DeploymentEvent(deployment_id="x")
    return report_pb2.Report(device_id="d", boot_id="b", seq=seq, deployment=event)


@asynccontextmanager
async def running(*links):
    clock = ManualClock()
    spool = MemorySpool()
    uplink = Uplink(links, spool, clock, LIMITS, random.Random(1))
    packs, connects = [], []
    task = asyncio.create_task(uplink.run(packs.append, lambda: connects.append(1)))
    await clock.settle()
    try:
        yield uplink, spool, clock, packs, connects
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()


async def test_reports_go_out_once_connected_and_leave_when_acknowledged():
    link = FakeLink("mqtt")
    async with running(link) as (uplink, spool, clock, _, connects):
        uplink.put(report(1))
        uplink.put(report(2))
        await clock.advance(100)
        assert link.batches == []
        link.set_connected(True)
        await clock.settle()
        assert link.batches == [[1, 2]]
        assert spool.stats().reports == 0
        assert uplink.acknowledged == 2
        assert uplink.connected == ("mqtt",)
        assert connects == [1]
        uplink.put(report(3))
        await clock.settle()
        assert link.batches == [[1, 2], [3]]


@pytest.mark.parametrize("pack_after_s", [0, 5])
async def test_a_pack_says_that_somebody_is_there_so_the_lost_batch_goes_out_again(pack_after_s):
    link = FakeLink("mqtt", answers=False)
    async with running(link) as (uplink, spool, clock, packs, _):
        link.set_connected(True)
        uplink.put(report(1))
        await clock.advance(pack_after_s)
        link.answers = True
        link.inbox.put(DownlinkMessage(pack=b"p"))
        await clock.advance(0.5)
        assert link.batches == [[1]], "the acknowledgement may be just behind"
        await clock.advance(1)
        assert link.batches == [[1], [1]]
        assert spool.stats().reports == 0
        assert packs == [b"p"]


async def test_without_an_acknowledgement_the_same_batch_goes_out_again():
    link = FakeLink("mqtt", answers=False)
    async with running(link) as (uplink, spool, clock, *_):
        link.set_connected(True)
        uplink.put(report(1))
        await clock.advance(15)
        assert link.batches == [[1]]
        await clock.advance(2)
        assert link.batches == [[1], [1]]
        assert spool.stats().reports == 1
        link.answers = True
        await clock.advance(100)
        assert spool.stats().reports == 0


async def test_retries_wait_longer_and_longer():
    link = FakeLink("mqtt", answers=False)
    async with running(link) as (uplink, _, clock, *_rest):
        link.set_connected(True)
        uplink.put(report(1))
        await clock.advance(3600)
        # 15 s for the acknowledgement and at most 60 s of pause, at least half of it.
        assert 3600 / 75 - 5 <= len(link.batches) <= 3600 / 45 + 8


async def test_the_fallback_comes_up_when_the_first_link_stays_down_and_goes_when_it_is_back():
    mqtt, grpc = FakeLink("mqtt"), FakeLink("grpc")
    grpc.connects_when_run = True
    async with running(mqtt, grpc) as (uplink, spool, clock, *_):
        uplink.put(report(1))
        await clock.advance(9)
        assert not grpc.running
        await clock.advance(2)
        assert grpc.running
        assert grpc.batches == [[1]]
        assert spool.stats().reports == 0
        mqtt.set_connected(True)
        await clock.settle()
        assert not grpc.running
        uplink.put(report(2))
        await clock.settle()
        assert mqtt.batches == [[2]]
        mqtt.set_connected(False)
        await clock.advance(5)
        assert not grpc.running
        await clock.advance(6)
        assert grpc.running


async def test_a_short_loss_of_the_broker_does_not_bring_the_fallback_up():
    mqtt, grpc = FakeLink("mqtt"), FakeLink("grpc")
    async with running(mqtt, grpc) as (_, _, clock, *_rest):
        mqtt.set_connected(True)
        for _ in range(5):
            await clock.advance(60)
            mqtt.set_connected(False)
            await clock.advance(5)
            mqtt.set_connected(True)
        assert not grpc.running


async def test_a_broker_behind_which_nobody_listens_is_passed_by():
    mqtt, grpc = FakeLink("mqtt", answers=False), FakeLink("grpc")
    grpc.connects_when_run = True
    async with running(mqtt, grpc) as (uplink, spool, clock, *_):
        mqtt.set_connected(True)
        uplink.put(report(1))
        await clock.advance(60)
        assert len(mqtt.batches) == 2
        assert grpc.batches == [[1]]
        assert spool.stats().reports == 0
        uplink.put(report(2))
        await clock.settle()
        assert grpc.batches == [[1], [2]]
        # After a while the broker is tried again, and gets its place back when it answers.
        mqtt.answers = True
        await clock.advance(300)
        uplink.put(report(3))
        await clock.settle()
        assert mqtt.batches[-1] == [3]
        assert not grpc.running


async def test_packs_are_passed_on():
    link = FakeLink("mqtt")
    async with running(link) as (_, _, clock, packs, _connects):
        link.inbox.put(DownlinkMessage(pack=b"one"))
        await clock.settle()
        assert packs == [b"one"]


async def test_acknowledgements_of_unknown_reports_are_harmless():
    link = FakeLink("mqtt", answers=False)
    async with running(link) as (uplink, spool, clock, *_):
        link.set_connected(True)
        uplink.put(report(1))
        await clock.settle()
        ack = report_pb2.ReportAck(ids=[report_pb2.ReportId(boot_id="other", seq=1)])
        link.inbox.put(DownlinkMessage(ack=ack))
        await clock.advance(14)
        assert spool.stats().reports == 1
        assert link.batches == [[1]]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], None),
        ([LinkState()], None),
        ([LinkState(connected=True)], 0),
        ([LinkState(), LinkState(connected=True)], 1),
        ([LinkState(connected=True), LinkState(connected=True)], 0),
        ([LinkState(True, 2, 1000), LinkState(connected=True)], 1),
        ([LinkState(True, 2, 600), LinkState(connected=True)], 0),
        ([LinkState(True, 9, 1000), LinkState()], 0),
    ],
)
def test_choice_of_a_link(states, expected):
    assert choose(states, LIMITS, 1000) == expected
