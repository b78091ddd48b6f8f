"""The MQTT client against real brokers, and against a peer that misbehaves."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import mqtt5
import pytest

from fleet.messaging import BrokerError, ClientLimits, Message, MqttClient, Will
from fleet.messaging.broker import Address
from fleet.messaging.packets import packet_size

TIMEOUT_S = 90.0


async def connect(broker: Address, name: str, **more: object) -> MqttClient:
    return await MqttClient.connect(broker.host, broker.port, name, **more)  # type: ignore[arg-type]


async def take(client: MqttClient, count: int) -> list[Message]:
    """The next ``count`` messages."""
    found: list[Message] = []
    async with asyncio.timeout(TIMEOUT_S):
        async for message in client.messages():
            found.append(message)
            if len(found) == count:
                break
    return found


async def test_messages_arrive_once_and_in_order(broker: Address) -> None:
    receiver, sender = await connect(broker, "order-in"), await connect(broker, "order-out")
    await receiver.subscribe("order/+")
    for number in range(300):
        await sender.publish("order/x", str(number).encode(), qos=number % 2)
    got = await take(receiver, 300)
    assert [int(message.payload) for message in got] == list(range(300))
    await sender.close()
    await receiver.close()
    assert receiver.closed.result() is None


async def test_a_full_payload_passes_and_is_retained(broker: Address) -> None:
    sender = await connect(broker, "big-out")
    await sender.publish("big/pack", b"x" * 65536, retain=True)
    receiver = await connect(broker, "big-in")
    await receiver.subscribe("big/pack")
    (message,) = await take(receiver, 1)
    assert (message.topic, len(message.payload), message.retain) == ("big/pack", 65536, True)
    await sender.publish("big/pack", b"", retain=True)
    await sender.close()
    await receiver.close()


async def test_many_publishes_at_once_stay_within_the_limit(broker: Address) -> None:
    got: list[Message] = []
    receiver = await connect(broker, "many-in", on_message=got.append)
    await receiver.subscribe("many/#")
    sender = await connect(broker, "many-out", limits=ClientLimits(inflight=8))
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*(sender.publish(f"many/{n}", b"x") for n in range(500)))
        while len(got) < 500:
            await asyncio.sleep(0)
    assert sender._acks == {}
    await sender.close()
    await receiver.close()


async def test_a_broken_connection_sends_the_will(broker: Address) -> None:
    watcher = await connect(broker, "will-watch")
    await watcher.subscribe("will/status")
    doomed = await connect(broker, "will-doomed", will=Will("will/status", b"gone"))
    assert doomed._transport is not None
    doomed._transport.abort()
    (message,) = await take(watcher, 1)
    assert message.payload == b"gone"
    assert isinstance(await doomed.closed, BrokerError)
    await watcher.publish("will/status", b"", retain=True)
    await watcher.close()


async def test_a_goodbye_sends_no_will(broker: Address) -> None:
    watcher = await connect(broker, "bye-watch")
    await watcher.subscribe("bye/status")
    polite = await connect(broker, "bye", will=Will("bye/status", b"gone"))
    await polite.close()
    await watcher.publish("bye/status", b"mine", retain=False)
    (message,) = await take(watcher, 1)
    assert message.payload == b"mine"
    await watcher.close()


async def test_a_program_that_does_not_listen_stops_the_socket_and_loses_nothing(
    broker: Address,
) -> None:
    limits = ClientLimits(queued_messages=10)
    receiver = await connect(broker, "slow-in", limits=limits)
    await receiver.subscribe("slow/x")
    sender = await connect(broker, "slow-out")
    async with asyncio.timeout(TIMEOUT_S):
        for number in range(60):
            await sender.publish("slow/x", str(number).encode())
    assert [int(one.payload) for one in await take(receiver, 60)] == list(range(60))
    await sender.close()
    await receiver.close()


async def test_the_same_client_id_twice_ends_the_first(broker: Address) -> None:
    first = await connect(broker, "twin")
    second = await connect(broker, "twin")
    async with asyncio.timeout(TIMEOUT_S):
        assert isinstance(await asyncio.shield(first.closed), BrokerError)
    await second.publish("twin/x", b"")
    await second.close()


async def test_keep_alive_keeps_a_quiet_connection(broker: Address) -> None:
    """Each look at it, twice in a keep-alive, sends a ping, and the broker answers that before the next look."""
    client = await connect(broker, "quiet", keep_alive_s=60)
    client._tick()  # connecting was traffic: no ping yet
    for _ in range(3):
        assert client._timer is not None
        assert client._timer.when() <= asyncio.get_running_loop().time() + 30
        client._timer.cancel()
        client._tick()
        assert client._pinged
        async with asyncio.timeout(TIMEOUT_S):
            while client._pinged:
                await asyncio.sleep(0.001)
    assert not client.closed.done()
    await client.close()


async def test_nothing_listens() -> None:
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1 cannot be used: .*Check that it runs"):
        await MqttClient.connect("127.0.0.1", 1, "x")


async def test_a_closed_client_says_so(broker: Address) -> None:
    client = await connect(broker, "done")
    await client.close()
    await client.close()
    for doing in (client.publish("x", b""), client.publish("x", b"", qos=0), client.subscribe("x")):
        with pytest.raises(BrokerError, match="was closed"):
            await doing
    assert [message async for message in client.messages()] == []


async def test_a_cancelled_publish_leaves_nothing_behind(broker: Address) -> None:
    client = await connect(broker, "cancel", limits=ClientLimits(inflight=1))
    task = asyncio.create_task(client.publish("cancel/x", b"1"))
    waiting = asyncio.create_task(client.publish("cancel/x", b"2"))
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(TIMEOUT_S):
        await waiting
        await client.publish("cancel/x", b"3")
    assert client._acks == {}
    await client.close()


async def test_a_thousand_clients_are_cheap(broker: Address) -> None:
    """The simulator's budget: 2.3 KB a device were measured, transport and future included."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    clients: list[MqttClient] = []
    got: list[Message] = []
    for start in range(0, 1000, 50):
        clients += await asyncio.gather(
            *(connect(broker, f"m{start + n}", on_message=got.append) for n in range(50))
        )
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / len(clients) < 4500  # the transport of plain asyncio is 1.5 KB of it
    await asyncio.gather(*(client.close() for client in clients))


# --- a peer that misbehaves -------------------------------------------------------------------------

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None]"]
WELCOME = mqtt5.ConnAckPacket().write()


@asynccontextmanager
async def peer(*replies: bytes) -> AsyncIterator[Address]:
    """Answers the first packets with ``replies``, then is silent."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await reader.read(4096)
            writer.write(reply)
        await done.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    done.set()
    server.close()


async def test_silence_instead_of_a_welcome() -> None:
    async with peer() as address:
        with pytest.raises(BrokerError, match=r"did not answer within 0\.2 s"):
            await connect(address, "x", limits=ClientLimits(connect_timeout_s=0.2))


async def test_a_refusal_is_told() -> None:
    refusal = mqtt5.ConnAckPacket(reason_code=mqtt5.ConnAckReasonCode.NOT_AUTHORIZED)
    async with peer(refusal.write()) as address:
        with pytest.raises(BrokerError, match="it refused: not authorized"):
            await connect(address, "x")


async def test_a_server_that_speaks_something_else() -> None:
    async with peer(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        with pytest.raises(BrokerError, match="not MQTT 5"):
            await connect(address, "x")


async def test_a_broker_that_no_longer_answers_is_left() -> None:
    async with peer(WELCOME) as address:
        client = await connect(address, "x", keep_alive_s=1)
        async with asyncio.timeout(TIMEOUT_S):
            error = await client.closed
    assert "no longer answers" in str(error)


@pytest.mark.parametrize("head", [b"\x30\xff\xff\xff\x7f", b"\x30\xff\xff\xff\xff\x7f"])
async def test_a_packet_that_is_too_large_or_malformed_ends_it(head: bytes) -> None:
    async with peer(WELCOME, head) as address:
        client = await connect(address, "x")
        with pytest.raises(BrokerError, match="not MQTT 5"):
            await client.publish("x", b"")


async def test_what_waits_when_the_connection_breaks_is_told() -> None:
    async with peer(WELCOME, mqtt5.DisconnectPacket().write()) as address:
        client = await connect(address, "x", limits=ClientLimits(inflight=1))
        waiting = [asyncio.create_task(client.publish("x", b"")) for _ in range(3)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, BrokerError) for one in results)


async def test_a_cancelled_publish_keeps_its_place_until_the_broker_answers() -> None:
    async with peer(WELCOME) as address:
        client = await connect(address, "x", limits=ClientLimits(inflight=1))
        task = asyncio.create_task(client.publish("x", b"1"))
        waiting = asyncio.create_task(client.publish("x", b"2"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert list(client._acks) == [1]
        client._handle(mqtt5.PubAckPacket(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert list(client._acks) == [2]
        client._handle(mqtt5.PubAckPacket(2))
        await waiting


async def test_what_waits_to_be_taken_is_bounded() -> None:
    """A peer sends 5 MB at once; a tenth of it must not be in our memory while nobody listens."""
    packet = mqtt5.PublishPacket("t", b"x" * 1000).write()
    async with peer(WELCOME, packet * 5000) as address:
        client = await connect(address, "x", limits=ClientLimits(queued_messages=10))
        await client.publish("x", b"", qos=0)
        async with asyncio.timeout(TIMEOUT_S):
            while not client._paused:
                await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert client._queue is not None
        assert 10 <= len(client._queue) < 500
        assert len(await take(client, 5000)) == 5000
        await client.close()


def test_packets_in_pieces_are_put_together() -> None:
    packet = mqtt5.PublishPacket("t", b"x" * 300).write()
    assert packet_size(memoryview(packet), 0) == len(packet)
    assert packet_size(memoryview(packet[:2]), 0) is None
    assert packet_size(memoryview(b""), 0) is None
    with pytest.raises(ValueError, match="length"):
        packet_size(memoryview(b"\x30\xff\xff\xff\xff"), 0)
