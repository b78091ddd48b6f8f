"""``fleet token`` and ``fleet audit``, on the fleet folder and against a running fleet manager."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from fleet.cli.app import app
from fleet.cli.init import make_home
from fleet.cli.output import console
from fleet.home import Home
from fleet.store import open_store

Served = Any


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(console, "width", 200)
    for name in ("MUSTER_SERVER", "MUSTER_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    made = Home(tmp_path / "fleet")
    make_home(made, "lab", time.time())
    monkeypatch.setenv("MUSTER_HOME", str(made.path))
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def said(*arguments: str) -> Any:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_on_the_fleet_folder_without_a_fleet_manager(home: Home) -> None:
    shown = run("token", "create", "ci", "--role", "operator", "--scope", "model=m,class=edge")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("muster_")
    assert "ci: operator for model=m, class=edge, until " in " ".join(shown.stderr.split())
    token = shown.stdout.strip()
    listed = run("token", "list").stdout
    assert "model=m, class=edge" in listed
    assert token not in listed
    assert run("token", "create", "ci", "--role", "viewer").exit_code == 1
    assert run("token", "revoke", "ci").stdout == "ci: revoked\n"
    assert "revoked by local" in run("token", "list").stdout
    entries = said("audit", "list")["entries"]
    assert [(one["operation"], one["object"], one["name"]) for one in reversed(entries)] == [
        ("token create", "ci", "local"),
        ("token revoke", "ci", "local"),
    ]
    whole = said("audit", "verify")
    assert (whole["whole"], whole["number"]) == (True, 2)
    kept = f"2:{whole['sha256']}"
    assert said("audit", "verify", "--expect", kept) == whole
    wrong = run("audit", "verify", "--expect", f"1:{whole['sha256']}")
    assert wrong.exit_code == 3
    assert "entry 1 of the audit log is not the one that was written" in " ".join(
        wrong.stderr.split()
    )

    store = open_store(home.database)
    with store.begin() as connection:
        connection.execute(text("DROP TRIGGER audit_log_no_delete"))
        connection.execute(text("DELETE FROM audit_log WHERE number = 2"))
    store.close()
    cut = run("audit", "verify")
    assert cut.exit_code == 3
    assert "the newest 1 were cut off" in " ".join(cut.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("create", "Ada", "--role", "viewer"), 2, "cannot be the name of a token"),
        (("create", "ada", "--role", "viewer", "--expires", "soon"), 2, "is no duration"),
        (("create", "ada", "--role", "operator", "--scope", "m"), 2, "write model=NAME"),
        (("create", "ada", "--role", "admin", "--scope", "model=m"), 2, "role admin has none"),
        (("revoke", "eve"), 1, "there is no token 'eve'"),
        (("list", "--home", "x", "--server", "http://127.0.0.1:1"), 2, "exclude each other"),
        (("list", "--home", "nowhere"), 2, "is no fleet folder"),
    ],
)
def test_what_cannot_be_is_told(
    home: Home, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = run("token", *arguments)
    assert done.exit_code == code, done.output
    assert says in " ".join(done.stderr.split())


def test_against_a_running_fleet_manager(served: Served) -> None:
    made = json.loads(served.run("token", "create", "ada", "--role", "viewer", "--json").stdout)
    assert (made["name"], made["role"], made["scope"]) == (
        "ada",
        "viewer",
        {"model": [], "class": []},
    )
    as_ada = ("--token", made["token"])
    assert served.run("status", *as_ada).exit_code == 0
    refused = served.run("rollout", "pause", "r1", *as_ada)
    assert refused.exit_code == 1
    assert (
        "`rollout change` needs the role operator, and the token 'ada' is a viewer's"
        in " ".join(refused.stderr.split())
    )
    assert served.run("token", "revoke", "ada").stdout == "ada: revoked\n"
    out = served.run("status", *as_ada)
    assert (out.exit_code, "it is unknown, expired or revoked" in " ".join(out.stderr.split())) == (
        1,
        True,
    )
    listed = json.loads(served.run("token", "list", "--json").stdout)["tokens"]
    assert [(one["name"], one["state"]) for one in listed] == [("ada", "revoked")]
    whole = json.loads(served.run("audit", "verify", "--json").stdout)
    assert whole["number"] == 4
    shown = served.run("audit", "list").stdout
    assert "rollout change" in shown
    assert "refused" in shown


def test_every_command_that_speaks_to_a_fleet_manager_takes_a_token_and_a_ca() -> None:
    for command in (
        ("status",),
        ("rollout", "start"),
        ("device", "list"),
        ("token", "list"),
        ("bundle", "publish"),
    ):
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
        assert "--token" in shown, command
        assert "--ca" in shown, command
    assert "--token" not in CliRunner().invoke(app, ["init", "--help"]).output
