"""The units are what systemd accepts, and say what the daemons do."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "packaging" / "systemd"


def test_both_units_are_there() -> None:
    assert {path.name for path in UNITS.glob("*.service")} == {
        "muster-agent.service",
        "muster-fleet.service",
    }


@pytest.mark.parametrize("name", ["muster-agent.service", "muster-fleet.service"])
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is missing: this machine has no systemd")
    text = (UNITS / name).read_text(encoding="utf-8")
    # The programs live where the package puts them; here any executable stands for them.
    for program in ("/usr/bin/fleet-agent", "/usr/bin/fleet"):
        text = text.replace(f"ExecStart={program} ", f"ExecStart={sys.executable} ")
    unit = tmp_path / name
    unit.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if name in line]
    assert done.returncode == 0, done.stderr
    assert not complaints


@pytest.mark.parametrize("name", ["muster-agent.service", "muster-fleet.service"])
def test_unit_has_readiness_watchdog_and_hardening(name: str) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string((UNITS / name).read_text(encoding="utf-8"))
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert service["Restart"] == "always"
    assert int(service["WatchdogSec"].rstrip("s")) > 0
    for key in (
        "NoNewPrivileges",
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "SystemCallFilter",
    ):
        assert key in service
