"""Whose signature counts over a broker: the same certificates that may make calls."""

import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from agent.identity.certificate import parse_key
from fleet.messaging.signatures import key_digest
from fleet.registry.device_keys import EnrolledKeys
from tests.support.identity import EnrollingDevice, secure_fleet


async def test_a_device_signs_with_the_key_of_a_certificate_that_is_accepted(
    tmp_path: Path,
) -> None:
    async with secure_fleet(tmp_path) as fleet:
        keys = EnrolledKeys(fleet.manager.store, "lab", time.time)
        assert await keys.public_keys("cam-1") == {}, "nobody enrolled it"
        device = EnrollingDevice(fleet, tmp_path / "cam-1")
        await device.enrol(await fleet.token())
        own = parse_key(device.paths.device_key.read_bytes()).public_key()
        assert isinstance(own, ec.EllipticCurvePublicKey)
        assert list(await keys.public_keys("cam-1") or {}) == [key_digest(own)]
        later = EnrolledKeys(fleet.manager.store, "lab", lambda: time.time() + 8 * 86_400)
        assert await later.public_keys("cam-1") == {}, "it has expired"
        await fleet.decide("cam-1", "revoke", "stolen")
        assert await keys.public_keys("cam-1") == {}
