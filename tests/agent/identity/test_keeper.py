"""When a certificate is renewed, by which way, and that a failure is waited out."""

import random
import time
from pathlib import Path

import pytest

from agent.adapters.identity_disk import IdentityDisk
from agent.errors import LinkError
from agent.identity import IdentityInUse, IdentityKeeper, IdentityStore, KeeperLimits
from agent.identity.certificate import parse_certificate, request
from agent.identity.errors import EnrolmentRefusedError
from agent.identity.schedule import Need, plan
from agent.state_dir import IdentityPaths
from fleet.registry.authority import certificate_pem, make_authority
from fleet.registry.device_ca import check_proof, identity_key, issue_to_device, requested_key
from protos.identity import DeviceName, lapsed_message
from tests.support.manual_clock import ManualClock

NAME = DeviceName("lab", "camera", "cam-1")
DAY_S = 86400.0
LIFE_S = 7 * DAY_S


class Fleet:
    """Signs by its own clock; ``broken`` calls fail as if nobody were there, ``refused`` ones are a no."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.authority = make_authority("ca", clock.now_s() - DAY_S, 1000 * DAY_S)
        self.calls: list[str] = []
        self.keys: list[str] = []
        self.broken: set[str] = set()
        self.refused: set[str] = set()
        self.lost = 0
        self.identity = b""

    def sign(self, csr: bytes) -> bytes:
        key = requested_key(csr)
        self.keys.append(key.sha256)
        made = issue_to_device(self.authority, NAME, key, self.clock.now_s(), LIFE_S)
        return certificate_pem(made) + self.authority.pem

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise LinkError(f"{name} failed")
        if name in self.refused:
            raise EnrolmentRefusedError(f"{name} refused")

    async def renew(self, csr: bytes) -> bytes:
        self._called("renew")
        chain = self.sign(csr)
        if self.lost:
            self.lost -= 1
            raise LinkError("the answer was lost")
        return chain

    async def nonce(self, device_id: str) -> bytes:
        self._called("nonce")
        return b"n" * 32

    async def renew_lapsed(self, device_id: str, nonce: bytes, csr: bytes, proof: bytes) -> bytes:
        self._called("lapsed")
        check_proof(identity_key(self.identity), proof, lapsed_message(device_id, nonce, csr))
        return self.sign(csr)

    async def confirm(self, device_id: str) -> None:
        self._called("confirm")


class Lab:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock(time.time())
        self.fleet = Fleet(self.clock)
        self.store = IdentityStore(IdentityPaths(folder), IdentityDisk())
        self.store.keep_server(self.fleet.authority.pem, "fleet:1")
        from agent.identity.certificate import public_der

        self.fleet.identity = public_der(self.store.identity_key())
        chain = self.fleet.sign(request(self.store.next_key(), "cam-1"))
        self.store.install(chain, "cam-1", "camera")
        self.changes: list[IdentityInUse] = []
        identity = self.store.read()
        assert identity is not None
        self.keeper = IdentityKeeper(
            self.store, identity, self.fleet, self.clock, self._changed,
            KeeperLimits(), random.Random(1),
        )  # fmt: skip

    async def _changed(self, identity: IdentityInUse) -> None:
        self.changes.append(identity)
        self.fleet.calls.append("changed")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "identity")


def test_the_plan_over_a_certificates_life(lab: Lab) -> None:
    certificate = lab.keeper.identity.certificate
    start, end = certificate.not_before_s, certificate.not_after_s
    life = end - start
    assert plan(certificate, start, 0.5).need is Need.WAIT
    assert plan(certificate, start, 0.5).wait_s == pytest.approx(life * 2 / 3)
    assert plan(certificate, start + life * 0.62, 0.0).need is Need.RENEW
    assert plan(certificate, start + life * 0.70, 1.0).need is Need.WAIT
    assert plan(certificate, end - 1, 1.0).need is Need.RENEW
    assert plan(certificate, end, 0.5).need is Need.LAPSED
    assert plan(certificate, 0.0, 0.5) == plan(certificate, start, 0.5)  # a clock without a battery


async def test_nothing_is_done_before_it_is_time(lab: Lab) -> None:
    assert await lab.keeper.step() == KeeperLimits().look_s
    assert lab.fleet.calls == []
    assert lab.keeper.not_before_s == lab.keeper.identity.certificate.not_before_s


async def test_renewal_uses_a_new_key_and_the_new_certificate_at_once(lab: Lab) -> None:
    before = lab.keeper.identity
    await lab.clock.advance(5.5 * DAY_S)
    assert await lab.keeper.step() == 0.0
    assert lab.fleet.calls == ["renew", "changed", "confirm"]
    after = lab.keeper.identity
    assert lab.changes == [after]
    assert after.key_pem != before.key_pem
    assert lab.store.read() == after
    assert (
        parse_certificate(lab.store.read().certificate.pem).not_after_s
        > before.certificate.not_after_s
    )  # type: ignore[union-attr]


async def test_a_lost_answer_is_asked_for_again_with_the_same_key(lab: Lab) -> None:
    before = lab.keeper.identity
    await lab.clock.advance(5.5 * DAY_S)
    lab.fleet.lost, lab.fleet.refused = 1, {"nonce"}
    wait_s = await lab.keeper.step()
    assert 0 < wait_s <= 30
    assert lab.keeper.identity == before
    await lab.keeper.step()
    assert lab.fleet.keys[-1] == lab.fleet.keys[-2]
    assert lab.keeper.identity != before


async def test_waits_grow_and_are_bounded(lab: Lab) -> None:
    await lab.clock.advance(5.5 * DAY_S)
    lab.fleet.broken = {"renew", "nonce"}
    waits = [await lab.keeper.step() for _ in range(12)]
    assert waits[0] <= 30 < waits[3]
    assert max(waits) <= 3600
    assert lab.fleet.calls.count("lapsed") == 0


async def test_expired_by_the_devices_clock_the_identity_key_renews(lab: Lab) -> None:
    await lab.clock.advance(8 * DAY_S)
    await lab.keeper.step()
    assert lab.fleet.calls == ["nonce", "lapsed", "changed", "confirm"]


async def test_expired_by_the_servers_clock_alone_it_does_too(lab: Lab) -> None:
    await lab.clock.advance(5.5 * DAY_S)
    lab.fleet.broken = {"renew"}  # the handshake fails, and nobody says why
    await lab.keeper.step()
    assert lab.fleet.calls == ["renew", "nonce", "lapsed", "changed", "confirm"]


async def test_a_no_is_not_asked_again_at_once(lab: Lab) -> None:
    before = lab.keeper.identity
    await lab.clock.advance(5.5 * DAY_S)
    lab.fleet.refused = {"renew"}
    assert await lab.keeper.step() >= 1800
    assert lab.fleet.calls == ["renew"]
    assert lab.keeper.identity == before
