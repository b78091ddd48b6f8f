"""Log lines carry their ids; the inventory says what the device is."""

import io
import json
import logging
import time
from types import SimpleNamespace

import pytest

from agent.adapters.clock import SystemClock
from agent.adapters.resources import ProcessResources, disk_free_bytes, read_battery
from agent.health.telemetry import ServedModel
from agent.inventory import agent_version, installed_version, provider_name, read_machine
from agent.logs import JsonFormatter, TextFormatter
from agent.ports import ResourceUse
from agent.trust import stratum_of


def line(formatter, *, error=None, **extra):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    log = logging.Logger("agent.test")
    log.addHandler(handler)
    log.warning("two\nlines %s", "here", extra=extra, exc_info=error)
    return stream.getvalue()


def test_json_lines_carry_the_ids():
    text = line(JsonFormatter("cam-1"), model="m", rollout="r7", bundle="")
    assert text.count("\n") == 1
    found = json.loads(text)
    assert (found["device"], found["model"], found["rollout"]) == ("cam-1", "m", "r7")
    assert (found["level"], found["message"], found["logger"]) == (
        "warning",
        "two\nlines here",
        "agent.test",
    )
    assert "bundle" not in found


def test_json_lines_carry_the_exception():
    try:
        raise ValueError("boom")
    except ValueError as error:
        found = json.loads(line(JsonFormatter("d"), error=error))
    assert "ValueError: boom" in found["exception"]


def test_text_lines_end_with_the_ids():
    assert line(TextFormatter(), model="m", rollout="r7").endswith(
        "lines here  [model=m rollout=r7]\n"
    )


def test_the_inventory_of_this_machine():
    machine = read_machine("cam-1", "camera", {"site": "north"})
    assert machine.hardware
    assert machine.memory_bytes > 0
    assert machine.cpu_count > 0
    assert machine.onnxruntime_version == installed_version("onnxruntime") != ""
    assert machine.agent_version == agent_version()
    facts = machine.facts()
    assert (facts.device_id, facts.device_class, facts.labels) == (
        "cam-1",
        "camera",
        {"site": "north"},
    )
    assert machine.execution_provider == "cpu"
    assert machine.facts(-330).utc_offset_minutes == -330
    use = ResourceUse(1, 2.0, 123, 4, battery_percent=77.0, on_battery=True)
    report = machine.report([ServedModel("m", "1", "a" * 64, "r1")], use, 120)
    assert report.disk_free_bytes == 123
    assert (report.execution_provider, report.utc_offset_minutes) == ("cpu", 120)
    assert (report.battery_percent, report.on_battery) == (77.0, True)
    assert [(it.model, it.version, it.rollout_id) for it in report.active] == [("m", "1", "r1")]


def test_what_is_not_known_is_left_out_of_the_inventory():
    report = read_machine("cam-1", "camera", {}).report([], None)
    assert not report.HasField("battery_percent")
    assert report.disk_free_bytes == 0


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("CPUExecutionProvider", "cpu"),
        ("CUDAExecutionProvider", "cuda"),
        ("QNNExecutionProvider", "qnn"),
    ],
)
def test_strata_have_short_names_of_providers(provider, name):
    machine = read_machine("cam-1", "camera", {}, provider)
    assert machine.execution_provider == provider_name(provider) == name
    assert stratum_of(machine.facts()) == f"camera/{name}"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, (None, False)),
        (SimpleNamespace(percent=80, power_plugged=False), (80.0, True)),
        (SimpleNamespace(percent=80, power_plugged=None), (80.0, False)),
        (SimpleNamespace(percent=-1, power_plugged=False), (None, False)),
        (OSError("an odd driver"), (None, False)),
        (ValueError("no number"), (None, False)),
    ],
)
def test_reading_the_battery_never_fails(monkeypatch, found, expected):
    def sensors_battery():
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr("psutil.sensors_battery", sensors_battery)
    assert read_battery() == expected


def test_the_clock_knows_the_local_time(monkeypatch):
    monkeypatch.setenv("TZ", "IST-5:30")
    time.tzset()
    try:
        assert SystemClock().utc_offset_minutes() == 330
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_package_that_is_not_installed_has_no_version():
    assert installed_version("no-such-package-here") == ""


def test_resources_of_this_process(tmp_path):
    probe = ProcessResources(tmp_path, lambda: None)
    assert probe.read().cpu_percent == 0
    use = probe.read()
    assert use.rss_bytes > 10_000_000
    assert use.disk_free_bytes > 0
    assert use.memory_available_bytes > 0
    assert use.cpu_percent >= 0


def test_a_model_server_that_is_gone_is_left_out(tmp_path):
    alone = ProcessResources(tmp_path, lambda: None).read().rss_bytes
    with_ghost = ProcessResources(tmp_path, lambda: 2**22 + 1).read().rss_bytes
    assert with_ghost == pytest.approx(alone, rel=0.2)


def test_a_folder_that_is_gone_has_no_room(tmp_path):
    assert disk_free_bytes(tmp_path / "gone") == 0
