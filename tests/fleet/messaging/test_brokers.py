"""The embedded broker's process: started, supervised, ended; and the addresses that are refused."""

import asyncio
import os
import signal
import subprocess
import sys

import psutil
import pytest

from agent.errors import ConfigError
from fleet.messaging import BrokerError, ClientLimits, MqttClient
from fleet.messaging.broker import Address, BrokerLimits, EmbeddedBroker, ExternalBroker
from tests.support.daemon import wait_until

TIMEOUT_S = 90.0
QUICK = BrokerLimits(restart_first_s=0.05)
PATIENT = ClientLimits(connect_timeout_s=TIMEOUT_S)


async def test_it_listens_on_loopback_only_and_ends_with_stop() -> None:
    broker = EmbeddedBroker("localhost", 0)
    await broker.start()
    assert broker.pid is not None
    process = psutil.Process(broker.pid)
    listening = [c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert [(one.ip, one.port) for one in listening] == [("127.0.0.1", broker.address.port)]
    await broker.stop()
    assert not process.is_running()
    with pytest.raises(BrokerError):
        await MqttClient.connect("127.0.0.1", broker.address.port, "x")


async def test_it_is_started_again_when_it_dies() -> None:
    broker = EmbeddedBroker("127.0.0.1", 0, QUICK)
    await broker.start()
    address, first = broker.address, broker.pid
    client = await MqttClient.connect(address.host, address.port, "x")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(TIMEOUT_S):
        await client.closed
        while True:
            try:
                again = await MqttClient.connect(address.host, address.port, "x")
                break
            except BrokerError:
                await asyncio.sleep(0.05)
    assert broker.address == address
    assert broker.restarts == 1
    assert broker.pid != first
    await again.close()
    await broker.stop()


async def test_a_port_in_use_is_told() -> None:
    first = EmbeddedBroker("127.0.0.1", 0)
    await first.start()
    second = EmbeddedBroker("127.0.0.1", first.address.port)
    with pytest.raises(BrokerError, match=r"cannot listen on .*something else does"):
        await second.start()
    await second.stop()
    await first.stop()


def test_it_dies_with_its_parent() -> None:
    code = (
        "import asyncio\n"
        "from fleet.messaging.broker import EmbeddedBroker\n"
        "async def main():\n"
        "    broker = EmbeddedBroker('127.0.0.1', 0)\n"
        "    await broker.start()\n"
        "    print(broker.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not psutil.pid_exists(child), "the broker ends with its parent", TIMEOUT_S)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "::", "example.com"])
def test_nothing_beyond_loopback(host: str) -> None:
    with pytest.raises(ConfigError, match="not a loopback address"):
        EmbeddedBroker(host, 0)
    with pytest.raises(ConfigError, match="not a loopback address"):
        ExternalBroker(host, 1883)


async def test_two_thousand_connections() -> None:
    broker = EmbeddedBroker("127.0.0.1", 0)
    await broker.start()
    clients: list[MqttClient] = []
    async with asyncio.timeout(300):
        for start in range(0, 2000, 100):
            clients += await asyncio.gather(
                *(
                    MqttClient.connect(
                        "127.0.0.1", broker.address.port, f"c{start + n}", limits=PATIENT
                    )
                    for n in range(100)
                )
            )
    assert not any(client.closed.done() for client in clients)
    await asyncio.gather(*(client.close() for client in clients))
    await broker.stop()


def test_addresses_are_written_as_they_are_read() -> None:
    assert str(Address("127.0.0.1", 1)) == "127.0.0.1:1"
    assert str(Address("::1", 1)) == "[::1]:1"
