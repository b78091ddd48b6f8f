"""The configuration: every wrong key is refused by name, the example is complete."""

import tomllib

import pytest

from agent.config import BrokerAddress, example_toml, load_config, parse_address, parse_broker
from agent.errors import ConfigError

GOOD = """
[device]
id = "cam-1"
class = "camera"
labels = { site = "north" }
state_dir = "state"
[fleet]
name = "lab"
root = "root.json"
mqtt = ""
[telemetry]
window_s = 5
"""


def load(tmp_path, text):
    path = tmp_path / "agent.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_what_is_given_and_what_is_not(tmp_path):
    config = load(tmp_path, GOOD)
    assert (config.device.id, config.device.device_class, config.device.labels) == (
        "cam-1",
        "camera",
        {"site": "north"},
    )
    assert config.device.state_dir == tmp_path / "state"
    assert config.fleet.root == tmp_path / "root.json"
    assert config.fleet.mqtt == ""
    assert config.fleet.grpc == "127.0.0.1:8471"
    assert config.telemetry.window_s == 5.0
    assert config.log.level == "info"


def test_the_example_is_a_configuration_and_names_every_key(tmp_path):
    text = example_toml()
    load(tmp_path, text)
    # With the defaults put in as well it is still one, and means the same.
    full = "\n".join(
        line.removeprefix("# ") if " = " in line and line.startswith("# ") else line
        for line in text.splitlines()
    )
    full = full.replace("labels = { site", "# labels = { site")
    assert load(tmp_path, full) == load(tmp_path, text)
    assert {"device", "fleet", "serving", "telemetry", "update", "health", "log"} == set(
        tomllib.loads(text)
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[telemetry]", "[telemetri]", r"unknown section \[telemetri\]; did you mean 'telemetry'"),
        ("window_s", "windows_s", r"\[telemetry\] windows_s is not a key; did you mean 'window_s'"),
        (
            "window_s = 5",
            "frobnicate = 5",
            r"\[telemetry\] frobnicate is not a key; known are: window_s",
        ),
        ("window_s = 5", 'window_s = "5"', r"\[telemetry\] window_s = '5' must be a number"),
        ("window_s = 5", "window_s = true", r"must be a number"),
        ("window_s = 5", "window_s = nan", r"must be a finite number"),
        ("window_s = 5", "window_s = 0", r"too small: at least 1"),
        ("window_s = 5", "window_s = 1e9", r"too large: at most 3600"),
        ("window_s = 5", "spool_reports = 99.5", r"spool_reports = 99.5 must be a whole number"),
        ('id = "cam-1"', "", r"\[device\] id is missing: Name of this device"),
        ('id = "cam-1"', 'id = "Cam 1"', r"\[device\] id = 'Cam 1' must be 1 to 40 of a-z"),
        ('id = "cam-1"', "id = 7", r"\[device\] id = 7 must be text"),
        ('class = "camera"', 'class = ""', r"\[device\] class = '' must be"),
        ('{ site = "north" }', "{ site = 7 }", "must have text values only"),
        ('{ site = "north" }', '{ id = "x" }', "'id' cannot be a label"),
        ('{ site = "north" }', '{ "a b" = "x" }', "'a b' cannot be a label"),
        ('{ site = "north" }', '"north"', r"must be a table like"),
        ('mqtt = ""', 'mqtt = "broker:1883"', "not a loopback address"),
        ('mqtt = ""', 'mqtt = "broker:1883"', "elsewhere is spoken to over TLS: mqtts://host:port"),
        ('mqtt = ""', 'mqtt = "mqtts://broker"', "write mqtts://host:port"),
        ('mqtt = ""', 'mqtt = "mqtts://broker:0"', "write mqtts://host:port"),
        ('mqtt = ""', 'mqtt = "mqtts://a b:1"', "write mqtts://host:port"),
        ('mqtt = ""', 'mqtt = "http://127.0.0.1:1"', "must begin with mqtt:// or mqtts://"),
        ('mqtt = ""', 'mqtt = "127.0.0.1"', "write host:port"),
        ('mqtt = ""', 'mqtt = "127.0.0.1:0"', "needs the port the other side listens on"),
        ('mqtt = ""', 'mqtt = "127.0.0.1:99999"', "write host:port"),
        ('mqtt = ""', 'grpc = ""', "write host:port"),
        ('root = "root.json"', 'root = ""', "must be a path"),
        ("[fleet]", "fleet = 3\n[fleets]", "is not valid TOML|unknown section|must be a section"),
        ("window_s = 5", "window_s = ", "is not valid TOML"),
        ("[telemetry]\nwindow_s = 5", '[log]\nlevel = "loud"', "must be one of: debug, info"),
        (
            "[telemetry]\nwindow_s = 5",
            '[serving]\nlisten = "0.0.0.0:8473"',
            r"\[serving\] listen = '0.0.0.0'|loopback",
        ),
        (
            "[telemetry]\nwindow_s = 5",
            '[serving]\nhttp = "10.0.0.1:8474"',
            r"\[serving\] http = '10.0.0.1' is not a loopback",
        ),
        (
            "[telemetry]\nwindow_s = 5",
            '[serving]\nhttp_unix = "run/http.sock"',
            r"\[serving\] http_unix = 'run/http.sock' must be an absolute path",
        ),
        (
            "[telemetry]\nwindow_s = 5",
            f'[serving]\ngrpc_unix = "/{"a" * 107}"',
            "longer than the 107 bytes",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert "agent.toml" in str(caught.value)


def test_a_file_that_is_not_there_says_how_to_begin(tmp_path):
    with pytest.raises(ConfigError, match="config --example"):
        load_config(tmp_path / "none.toml")


def test_port_zero_is_for_listening_only(tmp_path):
    config = load(tmp_path, GOOD + '[serving]\nlisten = "127.0.0.1:0"\n')
    assert config.serving.listen == "127.0.0.1:0"


def test_rest_may_be_off_and_sockets_may_be_on(tmp_path):
    config = load(tmp_path, GOOD + '[serving]\nhttp = ""\nhttp_unix = "/run/muster/http.sock"\n')
    assert (config.serving.http, config.serving.grpc_unix) == ("", "")
    assert config.serving.http_unix == "/run/muster/http.sock"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:8471", ("::1", 8471)),
    ],
)
def test_addresses(text, expected):
    assert parse_address(text, "x") == expected
    assert parse_broker(text, "x") == BrokerAddress(*expected, tls=False)
    assert parse_broker(f"mqtt://{text}", "x") == BrokerAddress(*expected, tls=False)


@pytest.mark.parametrize(
    ("text", "host"),
    [("mqtts://b.example:8883", "b.example"), ("mqtts://[fd00::1]:8883", "fd00::1")],
)
def test_a_broker_elsewhere(text, host):
    assert parse_broker(text, "x") == BrokerAddress(host, 8883, tls=True)


def test_the_fleet_manager_may_be_elsewhere_once_certificates_are_shown(tmp_path):
    elsewhere = GOOD.replace("[fleet]\n", '[fleet]\ngrpc = "fleet.example.com:8471"\n')
    with pytest.raises(ConfigError, match=r"Elsewhere the device needs a certificate: run"):
        load(tmp_path, elsewhere)
    config = load(tmp_path, elsewhere.replace("[fleet]\n", "[fleet]\ntls = true\n"))
    assert config.fleet.grpc == "fleet.example.com:8471"
