"""``fleet broker``: the same files for the same fleet, refusals that say what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fleet.cli.app import app
from fleet.config import example_config
from fleet.home import Home
from tests.support.certificates_broker import Certificates


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "fleet")
    found.path.mkdir()
    found.config.write_text(example_config("lab"), encoding="utf-8")
    return found


def call(home: Home, *arguments: str) -> Any:
    env = {"MUSTER_HOME": str(home.path), "COLUMNS": "1000"}
    return CliRunner().invoke(app, ["broker", *arguments], env=env)


def test_the_files_are_written_once_and_then_left_alone(home: Home) -> None:
    Certificates(home.pki).write()
    first = call(home, "config", "--json", "--user", "muster", "--listen", "[::]:8884")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["changed"] == ["mosquitto.conf", "mosquitto.acl"]
    folder = home.path / "broker"
    config = (folder / "mosquitto.conf").read_text(encoding="utf-8").splitlines()
    for line in (
        "listener 8884 ::",
        "user muster",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "allow_anonymous false",
        "tls_version tlsv1.3",
        "max_packet_size 65536",
        "autosave_interval 60",
        f"acl_file {folder}/mosquitto.acl",
        f"cafile {home.pki.device_ca}",
        f"crlfile {home.pki.revoked}",
    ):
        assert line in config
    assert (folder / "data").is_dir()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    second = call(home, "config", "--user", "muster", "--listen", "[::]:8884")
    assert "as it should be" in second.output
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_device_is_named_by_its_certificate_alone(home: Home) -> None:
    Certificates(home.pki).write()
    call(home, "config")
    rules = (home.path / "broker" / "mosquitto.acl").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in rules if line.startswith("pattern")]
    assert patterns == [
        "pattern read muster/lab/pack",
        "pattern read muster/lab/devices/%u/request",
        "pattern write muster/lab/devices/%u/report",
        "pattern write muster/lab/devices/%u/status",
        "pattern write muster/lab/devices/%u/response",
    ]
    before_any_user = rules[: rules.index("user fleet-manager")]
    assert not [line for line in before_any_user if line and not line.startswith("#")]


def test_a_broker_on_another_host(home: Home) -> None:
    Certificates(home.pki).write()
    done = call(home, "config", "--at", "/etc/muster-broker")
    assert "device-ca.pem, broker.pem, broker.key.pem, devices.crl.pem" in done.output
    assert str(home.path) not in (home.path / "broker" / "mosquitto.conf").read_text()


def test_what_is_missing_is_named(home: Home) -> None:
    done = call(home, "config")
    assert done.exit_code == 2
    assert "device-ca.pem" in done.output
    assert "fleet tls init" in done.output
    Certificates(home.pki).write()
    home.pki.revoked.unlink()
    done = call(home, "config")
    assert done.exit_code == 2
    assert "--no-crl" in done.output
    assert call(home, "config", "--no-crl").exit_code == 0
    assert "crlfile" not in (home.path / "broker" / "mosquitto.conf").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("config", "--listen", "8883"), "is no address"),
        (("config", "--listen", "host:0"), "is no address"),
        (("config", "--at", "/x\ny"), "cannot be written into Mosquitto's configuration"),
        (("put-off", "No/Device"), "is no device id"),
        (("put-off", "d1"), "only a broker over TLS"),
    ],
)
def test_what_is_wrong_is_said(home: Home, arguments: tuple[str, ...], message: str) -> None:
    Certificates(home.pki).write()
    done = call(home, *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.output
