"""Where a command finds its token and what it trusts."""

import json
from pathlib import Path

import pytest

from fleet.cli.credentials import Given, ca_for, given, token_for
from fleet.errors import ConfigError

HERE = "http://127.0.0.1:8470"
THERE = "https://fleet.example:8470"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fleet folder whose fleet manager runs, and a home folder without a token."""
    for name in ("MUSTER_TOKEN", "MUSTER_CA", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MUSTER_HOME", str(tmp_path / "fleet"))
    (tmp_path / "fleet").mkdir()
    said = {"http": HERE, "token": "of-run-file", "ca": "/ca.pem", "pid": 1}
    (tmp_path / "fleet" / "run.json").write_text(json.dumps(said))
    return tmp_path


def token_file(place: Path, mode: int = 0o600) -> Path:
    path = place / ".config" / "muster" / "token"
    path.parent.mkdir(parents=True)
    path.write_text("of-file\n")
    path.chmod(mode)
    return path


def test_the_token_by_precedence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_for(THERE) == ""
    token_file(place)
    assert token_for(THERE) == "of-file"
    assert token_for(HERE) == "of-run-file"
    monkeypatch.setenv("MUSTER_TOKEN", "of-variable")
    assert token_for(HERE) == token_for(THERE) == "of-variable"
    with given(Given("of-option")):
        assert token_for(HERE) == "of-option"
    assert token_for(HERE) == "of-variable"


@pytest.mark.parametrize(
    "server",
    [
        "http://127.0.0.1:8471",
        "https://127.0.0.1:8470",
        "http://[::1]:8470",
        THERE,
        "http://127.0.0.1",
    ],
)
def test_the_token_of_a_fleet_manager_is_sent_to_no_other(place: Path, server: str) -> None:
    assert token_for(server) == ""
    assert ca_for(server) is None


def test_localhost_is_this_machine(place: Path) -> None:
    assert token_for("http://localhost:8470") == "of-run-file"
    assert ca_for("http://localhost:8470") == Path("/ca.pem")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_token_that_others_can_read_is_refused(place: Path, mode: int) -> None:
    path = token_file(place, mode)
    with pytest.raises(ConfigError, match=f"can be read by others.*chmod 600 {path}") as caught:
        token_for(THERE)
    assert "of-file" not in str(caught.value)


def test_a_run_file_that_cannot_be_read_is_no_obstacle_for_another_server(place: Path) -> None:
    (place / "fleet" / "run.json").write_text("{")
    token_file(place)
    assert token_for(THERE) == "of-file"


def test_what_is_trusted_by_precedence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_CA", "/variable.pem")
    assert ca_for(THERE) == Path("/variable.pem")
    with given(Given(ca=Path("/option.pem"))):
        assert ca_for(THERE) == Path("/option.pem")
