"""The agent as a process: it starts, reports, tells systemd and stops; status and doctor beside it."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from contextlib import asynccontextmanager

import aiomqtt
import grpc.aio
import psutil
import pytest

from protos import device_pb2, device_pb2_grpc, report_pb2, topics
from tests.support.daemon import free_port
from tests.support.mosquitto import Mosquitto, require_mosquitto
from tests.support.signed_fleet import SignedFleet

COMMAND = (sys.executable, "-m", "agent.cli")
LIMIT_S = 90.0


class FleetManager(device_pb2_grpc.DeviceServiceServicer):
    """Serves a signed repository and keeps what devices report."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.reports = asyncio.Queue()

    async def Hello(self, request, context):
        return device_pb2.HelloReply(fleet="lab", pack=self.fleet.repository.pack())

    async def GetMetadata(self, request, context):
        content = self.fleet.repository.metadata(request.name)
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such file")
        return device_pb2.MetadataReply(content=content)

    async def Report(self, request, context):
        for report in request.reports:
            self.reports.put_nowait(report)
        ids = [report_pb2.ReportId(boot_id=it.boot_id, seq=it.seq) for it in request.reports]
        return report_pb2.ReportAck(ids=ids)

    async def Watch(self, request, context):
        yield device_pb2.Downlink(pack=self.fleet.repository.pack())
        await asyncio.Event().wait()

    async def next_report(self, kind):
        async with asyncio.timeout(LIMIT_S):
            while True:
                report = await self.reports.get()
                if report.WhichOneof("body") == kind:
                    return report


@asynccontextmanager
async def fleet_manager(folder):
    fleet = SignedFleet(folder / "fleet", now_s=time.time())
    manager = FleetManager(fleet)
    server = grpc.aio.server()
    device_pb2_grpc.add_DeviceServiceServicer_to_server(manager, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    manager.address = f"127.0.0.1:{port}"
    (folder / "root.json").write_bytes(fleet.root)
    try:
        yield manager
    finally:
        await server.stop(0)


def write_config(folder, grpc_address, mqtt="", extra=""):
    path = folder / "agent.toml"
    path.write_text(
        f'[device]\nid = "cam-1"\nclass = "cam"\nstate_dir = "state"\n'
        f'[fleet]\nname = "lab"\nroot = "root.json"\ngrpc = "{grpc_address}"\nmqtt = "{mqtt}"\n'
        f'[serving]\nlisten = "127.0.0.1:0"\nhttp = "127.0.0.1:0"\n'
        f'[telemetry]\nwindow_s = 1\n[log]\nformat = "json"\n{extra}',
        encoding="utf-8",
    )
    return path


async def command(*arguments, **environment):
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    async with asyncio.timeout(LIMIT_S):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def agent(config, log, **environment):
    with log.open("wb") as stream:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            "run",
            "--config",
            str(config),
            stderr=stream,
            env={**os.environ, **environment},
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ended(process):
    """The exit code of a process that is about to end."""
    async with asyncio.timeout(LIMIT_S):
        return await process.wait()


class ServiceManager:
    """systemd's end of the notification socket; reads all the time, as systemd does."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.messages = asyncio.Queue()
        self.task = asyncio.create_task(self._read())

    async def _read(self):
        while True:
            message = await asyncio.get_running_loop().sock_recv(self.socket, 4096)
            self.messages.put_nowait(message.decode())

    async def heard(self, wanted):
        async with asyncio.timeout(LIMIT_S):
            while wanted not in (message := await self.messages.get()):
                pass
        return message

    def close(self):
        self.task.cancel()
        self.socket.close()


async def test_a_life_over_grpc_alone(tmp_path):
    async with fleet_manager(tmp_path) as manager:
        config = write_config(tmp_path, manager.address)
        systemd = ServiceManager(tmp_path / "notify")
        log = tmp_path / "agent.log"
        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        async with agent(config, log, **variables) as process:
            assert "STATUS=serving no model" in await systemd.heard("READY=1")
            await systemd.heard("WATCHDOG=1")
            report = await manager.next_report("inventory")
            assert (report.device_id, report.inventory.device_class) == ("cam-1", "cam")
            assert report.inventory.onnxruntime_version

            code, out, _ = await command("status", "--config", str(config), "--json")
            assert code == 0
            status = json.loads(out)
            assert (status["device"], status["running"], status["pid"]) == (
                "cam-1",
                True,
                process.pid,
            )

            code, _, err = await command("run", "--config", str(config))
            assert code == 1
            assert f"another agent (process {process.pid}) runs in" in err

            children = psutil.Process(process.pid).children(recursive=True)
            assert len(children) == 1
            process.send_signal(signal.SIGTERM)
            await systemd.heard("STOPPING=1")
            assert await ended(process) == 0
            assert not children[0].is_running()
        systemd.close()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert {line["device"] for line in lines} == {"cam-1"}
        assert lines[-1]["message"] == "agent of device cam-1 stopped"
        assert not [line for line in lines if line["level"] in ("error", "critical")]

        code, out, _ = await command("status", "--config", str(config), "--json")
        status = json.loads(out)
        assert not status["running"]
        assert status["trust"]["versions"]["root"] == 1
        assert "no model is installed" in (await command("status", "--config", str(config)))[1]


async def next_mqtt_report(client, device):
    """The next report that comes over the broker, acknowledged as the fleet manager does."""
    async with asyncio.timeout(LIMIT_S):
        async for message in client.messages:
            batch = report_pb2.ReportBatch.FromString(message.payload)
            ids = [report_pb2.ReportId(boot_id=it.boot_id, seq=it.seq) for it in batch.reports]
            down = device_pb2.Downlink(ack=report_pb2.ReportAck(ids=ids))
            await client.publish(topics.request("lab", device), down.SerializeToString(), qos=1)
            return batch.reports[0]
    raise AssertionError("the messages ended")


@pytest.mark.mosquitto
async def test_reports_go_over_the_broker_and_without_one_over_grpc(tmp_path):
    require_mosquitto()
    broker = Mosquitto(tmp_path)
    await broker.start()
    async with fleet_manager(tmp_path) as manager:
        config = write_config(tmp_path, manager.address, f"127.0.0.1:{broker.port}")
        text = config.read_text()
        # With a broker nothing may go over gRPC, however long the first connection takes.
        config.write_text(text.replace("[serving]", "fallback_after_s = 600.0\n[serving]"))
        async with aiomqtt.Client(*broker.address, protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe(topics.all_reports("lab"), 1)
            # The agent's inventory is what it has to say at each start.
            async with agent(config, tmp_path / "mqtt.log") as process:
                assert (await next_mqtt_report(client, "cam-1")).HasField("inventory")
                process.send_signal(signal.SIGTERM)
                assert await ended(process) == 0
        assert manager.reports.empty()
        await broker.stop()
        config.write_text(text.replace("[serving]", "fallback_after_s = 0.5\n[serving]"))
        async with agent(config, tmp_path / "grpc.log") as process:
            assert (await manager.next_report("inventory")).device_id == "cam-1"
            process.send_signal(signal.SIGTERM)
            assert await ended(process) == 0


async def test_doctor_says_what_is_wrong_and_what_to_do(tmp_path):
    async with fleet_manager(tmp_path) as manager:
        config = write_config(tmp_path, manager.address)
        code, out, _ = await command("doctor", "--config", str(config), "--json")
        found = json.loads(out)
        assert (code, found["ok"]) == (0, True), out
        checks = {it["check"] for it in found["findings"]}
        assert {
            "state folder",
            "disk",
            "root.json",
            "fleet manager",
            "broker",
            "onnxruntime",
            "confinement",
            "slots",
        } <= checks

    (tmp_path / "state" / "spool.db").write_bytes(b"no database at all" * 500)
    (tmp_path / "root.json").write_text("{}")
    config = write_config(tmp_path, f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    code, out, _ = await command("doctor", "--config", str(config))
    assert code == 3
    assert "FAIL  fleet manager: Hello at" in out
    assert "start 'fleet serve', or correct [fleet] grpc" in out
    assert "FAIL  databases: spool.db is damaged" in out
    assert "FAIL  root.json:" in out
    assert "WARN  broker: no MQTT 5 broker at" in out
    assert "OK    onnxruntime: version" in out


async def test_wrong_usage_and_wrong_configuration_end_with_2(tmp_path):
    assert (await command("run"))[0] == 2
    for name in ("run", "status", "doctor"):
        code, _, err = await command(name, "--config", str(tmp_path / "none.toml"))
        assert code == 2
        assert "cannot read the configuration" in err
    config = write_config(tmp_path, "127.0.0.1:1")
    code, _, err = await command("run", "--config", str(config))
    assert code == 2
    assert "cannot read [fleet] root" in err
    (tmp_path / "root.json").write_text("{}")
    code, _, err = await command("run", "--config", str(config))
    assert code == 2
    assert "is not TUF root metadata" in err


async def test_config_prints_and_checks(tmp_path):
    code, out, _ = await command("config", "--example")
    assert code == 0
    path = tmp_path / "agent.toml"
    path.write_text(out)
    code, out, _ = await command("config", "--config", str(path))
    assert (code, out) == (0, f"{path} is in order\n")
    path.write_text(path.read_text() + "[oops]\n")
    code, _, err = await command("config", "--config", str(path))
    assert code == 2
    assert "unknown section [oops]" in err
    assert (await command("config"))[0] == 2


async def test_verify_hashes_a_bundle(tmp_path):
    from tests.support.onnx_models import BundleMaker

    made = BundleMaker().write(tmp_path / "bundle")
    code, out, _ = await command("verify", str(made.path), "--json")
    assert code == 0
    assert json.loads(out)["manifest_sha256"] == made.sha256
    assert made.sha256 in (await command("verify", str(made.path)))[1]
    name = made.manifest.files[0].name
    (made.path / name).chmod(0o600)
    with (made.path / name).open("r+b") as file:
        file.write(b"\x00\x01\x02")
    code, _, err = await command("verify", str(made.path))
    assert code == 3
    assert name in err
