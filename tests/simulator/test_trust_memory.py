"""The shared refresher: the real one's answers, each found once, refusals included."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.errors import LinkError
from agent.trust import TrustState
from agent.trust.errors import RollbackError
from agent.trust.refresh import TrustRefresher
from simulator.trust import SharedRefresher, SharedViews
from tests.support.signed_fleet import SignedFleet, directive_for


@pytest.fixture
def fleet(tmp_path):
    return SignedFleet(tmp_path)


def test_a_thousand_devices_verify_a_pack_once_and_share_its_state(fleet):
    pack = fleet.direct(directive_for(fleet.publish()))
    shared, source = SharedRefresher(fleet.root), fleet.offered()
    with ThreadPoolExecutor(8) as threads:
        states = list(
            threads.map(
                lambda _: shared.refresh(TrustState(), source, pack, fleet.now_s), range(1000)
            )
        )
    assert (shared.asked, shared.verified) == (1000, 1)
    assert len({id(state) for state in states}) == 1
    alone = TrustRefresher(fleet.root).refresh(TrustState(), fleet.offered(), pack, fleet.now_s)
    assert states[0] == alone


def test_without_a_pack_every_device_asks_for_what_is_newest(fleet):
    release = fleet.publish()
    fleet.direct(directive_for(release, number=1))
    shared, source = SharedRefresher(fleet.root), fleet.offered()
    first = shared.refresh(TrustState(), source, None, fleet.now_s)
    again = shared.refresh(TrustState(), source, None, fleet.now_s)
    assert again is first
    assert source.asked.count("timestamp.json") == 2
    assert source.asked.count("2.root.json") == 2
    fleet.direct(directive_for(release, number=2))
    assert shared.refresh(first, source, None, fleet.now_s) != first
    assert shared.verified == 2


def test_a_new_root_is_another_question(fleet):
    fleet.direct(directive_for(fleet.publish()))
    shared = SharedRefresher(fleet.root)
    first = shared.refresh(TrustState(), fleet.offered(), None, fleet.now_s)
    fleet.rotate_root()
    second = shared.refresh(first, fleet.offered(), None, fleet.now_s)
    assert "2.root.json" in second.files
    assert shared.verified == 2


def test_a_refusal_is_the_same_for_all_and_keeps_its_progress(fleet):
    release = fleet.publish()
    old = fleet.direct(directive_for(release, number=1))
    new = fleet.direct(directive_for(release, number=2))
    shared, source = SharedRefresher(fleet.root), fleet.offered()
    state = shared.refresh(TrustState(), source, new, fleet.now_s)
    refusals = []
    for _ in range(3):
        with pytest.raises(RollbackError) as refused:
            shared.refresh(state, source, old, fleet.now_s)
        refusals.append(refused.value)
    assert shared.verified == 2
    assert len({id(refusal) for refusal in refusals}) == 3
    assert all(refusal.progress == refusals[0].progress for refusal in refusals)


def test_a_server_that_cannot_be_reached_is_no_answer(fleet):
    pack = fleet.direct(directive_for(fleet.publish()))

    class Away:
        def get_metadata(self, name):
            raise LinkError("gone")

        get_target = get_metadata

    shared = SharedRefresher(fleet.root)
    with pytest.raises(LinkError):
        shared.refresh(TrustState(), Away(), pack, fleet.now_s)
    assert shared.refresh(TrustState(), fleet.offered(), pack, fleet.now_s).files


def test_who_asks_while_the_answer_is_being_found_waits_for_it(fleet):
    pack = fleet.direct(directive_for(fleet.publish()))
    begun, go_on = threading.Event(), threading.Event()
    offered = fleet.offered()

    class Slow:
        def get_metadata(self, name):
            begun.set()
            assert go_on.wait(60)
            return offered.get_metadata(name)

        def get_target(self, path, sha256):
            return offered.get_target(path, sha256)

    shared = SharedRefresher(fleet.root)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(shared.refresh, TrustState(), Slow(), pack, fleet.now_s)
        assert begun.wait(60)
        second = threads.submit(shared.refresh, TrustState(), Slow(), pack, fleet.now_s)
        go_on.set()
        assert first.result(60) is second.result(60)
    assert shared.verified == 1


def test_a_state_is_read_once(fleet):
    pack = fleet.direct(directive_for(fleet.publish()))
    state = SharedRefresher(fleet.root).refresh(TrustState(), fleet.offered(), pack, fleet.now_s)
    views = SharedViews()
    assert views(state) is views(state)
    assert [directive.id for directive in views(state).directives] == ["r1"]
