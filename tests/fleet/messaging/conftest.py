"""Real brokers for these tests: the embedded one and Mosquitto."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleet.messaging.broker import Address, EmbeddedBroker

BROKERS = [
    pytest.param("embedded", id="embedded"),
    pytest.param("mosquitto", id="mosquitto", marks=pytest.mark.mosquitto),
]


@pytest.fixture(params=BROKERS)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Address]:
    """The address of a running broker."""
    if request.param == "mosquitto":
        mosquitto: Any = request.getfixturevalue("mosquitto")
        yield Address("127.0.0.1", mosquitto.port)
        return
    embedded = EmbeddedBroker("127.0.0.1", 0)
    await embedded.start()
    yield embedded.address
    await embedded.stop()
