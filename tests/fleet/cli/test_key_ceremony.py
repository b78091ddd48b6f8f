"""A production fleet from `fleet init` to a device: what is published is what enough holders have signed, elsewhere."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from agent.trust.reading import releases
from fleet.cli.app import app
from fleet.repository import Repository
from tests.support.bundles import build_tiny
from tests.support.fleet import FleetHost
from tests.support.signed_fleet import OfferedFiles, Reader


@dataclass
class Person:
    """Somebody at a machine of their own: a folder to work in, and no fleet folder unless it is said."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    home: Path | None = None
    server: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self, *arguments: str, answer: str = "") -> Result:
        self.monkeypatch.chdir(self.folder)
        home = self.home or self.folder / "no-such-home"
        env = {"MUSTER_HOME": str(home), "MUSTER_SERVER": self.server or None, "COLUMNS": "200"}
        return CliRunner().invoke(app, arguments, env=env, input=answer, catch_exceptions=False)

    def said(self, *arguments: str, code: int = 0) -> Any:
        """What a command prints as JSON; it must end with ``code``."""
        done = self.run(*arguments, "--json")
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "dict[str, Person]":
    """An operator with the fleet folder, and three holders of the camera class's release keys."""
    names = ("operator", "anna", "ben", "cleo")
    made = {name: Person(tmp_path / name, monkeypatch) for name in names}
    made["operator"].home = tmp_path / "factory"
    return made


def give_keys_away(home: Path, people: "dict[str, Person]") -> None:
    """Each holder gets one key of each role, and the root; nothing stays at the server."""
    for path in sorted((home / "keys/offline").glob("*.pem")):
        number = int(path.stem.rpartition("-")[2])
        holder = ("anna", "ben", "cleo")[(number - 1) % 3]
        shutil.move(path, people[holder].folder / path.name)
    for name in ("anna", "ben", "cleo"):
        shutil.copy(home / "root.json", people[name].folder)


def test_the_whole_ceremony(people: "dict[str, Person]", tmp_path: Path) -> None:
    operator, home = people["operator"], tmp_path / "factory"
    host = FleetHost(home, "none", name="factory")
    made = operator.said(
        "init",
        str(home),
        "--name",
        "factory",
        "--production",
        "--class",
        "camera",
        "--class",
        "edge",
    )
    assert len(made["offline_keys"]) == 18
    config = host_config(host)
    (home / "fleet.toml").write_text(config, "utf-8")
    built = build_tiny(tmp_path / "project", "1.0.0", model="tiny")
    host.start()
    try:
        status = operator.said("status", "--server", host.server)
        assert len(status["offline_keys"]) == 18
        assert "offline keys still lie" in host.daemon.log.read_text("utf-8")
        give_keys_away(home, people)
        assert operator.said("status", "--server", host.server)["offline_keys"] == []

        publish = ("bundle", "publish", str(built.path), "--server", host.server)
        refused = operator.said(*publish, code=3)
        assert "comes without an attestation of its checks" in refused["message"]
        assert "the attestation key claims-1" in refused["message"]
        attested = people["anna"].said("bundle", "attest", str(built.path), "--key", "claims-1.pem")
        assert attested["result"] == "PASSED"
        asked = operator.said(*publish, code=4)
        request = operator.folder / asked["request"]
        assert (asked["role"], asked["version"]) == ("release-edge", 2)
        assert asked["needs"][0]["missing"] == [f"release-edge-{number}" for number in (1, 2, 3)]
        assert operator.said("bundle", "list", "--server", host.server)["bundles"] == []

        copies = [sign(people[name], request, number) for name, number in (("anna", 1), ("ben", 2))]
        once = operator.said("key", "merge", str(copies[0]), "--server", host.server, code=4)
        assert (once["published"], once["needs"][0]["signed"]) == (False, ["release-edge-1"])
        assert operator.said("bundle", "list", "--server", host.server)["bundles"] == []
        nothing = Reader(Path(made["root"]).read_bytes(), device_class="edge")
        assert releases(nothing.refresh(offered(home), None, time.time())) == {}

        done = operator.said("key", "merge", *map(str, copies), "--server", host.server)
        assert (done["published"], done["changed"]) == (True, True)
        again = operator.said("key", "merge", *map(str, copies), "--server", host.server)
        assert (again["published"], again["changed"]) == (True, False)
        (listed,) = operator.said("bundle", "list", "--server", host.server)["bundles"]
        assert (listed["path"], listed["release"]) == ("bundles/edge/tiny-1.0.0", 1)
        shown = operator.said("bundle", "show", listed["path"], "--server", host.server)
        assert [one["sha256"] for one in shown["attestations"]] == [attested["sha256"]]
    finally:
        host.stop()
    device = Reader(Path(made["root"]).read_bytes(), device_class="edge")
    state = device.refresh(offered(home), None, time.time())
    assert releases(state)["bundles/edge/tiny-1.0.0"].sha256 == built.manifest_sha256
    other = Reader(Path(made["root"]).read_bytes(), device_class="camera")
    assert releases(other.refresh(offered(home), None, time.time())) == {}


def host_config(host: FleetHost) -> str:
    return (
        f'[fleet]\nname = "{host.name}"\n\n[http]\nlisten = "127.0.0.1:{host.http_port}"\n\n'
        f'[grpc]\nlisten = "127.0.0.1:{host.grpc_port}"\n\n[broker]\nmode = "none"\n'
    )


def offered(home: Path) -> OfferedFiles:
    return OfferedFiles(Repository(home), {})


def sign(person: Person, request: Path, number: int) -> Path:
    """A holder's copy of the request, signed on the holder's own machine, which has no fleet folder."""
    copy = person.folder / request.name
    shutil.copy(request, copy)
    key = f"release-edge-{number}.pem"
    done = person.run("key", "sign", copy.name, "--key", key, "--root", "root.json", answer="y\n")
    assert done.exit_code == 0, done.output
    for text in (
        "adds bundles/edge/tiny-1.0.0: release 1 of tiny",
        "model.onnx",
        "0 of 2 signatures",
        "bundles/edge/tiny-1.0.0 is attested: PASSED by claims-1; passed: files, model model.onnx",
    ):
        assert text in done.stdout
    return copy


# --- a folder that stands still -------------------------------------------------------------------


@pytest.fixture
def operator(people: "dict[str, Person]") -> Person:
    """Before a fleet folder without a running fleet manager, with all offline keys still in it."""
    person = people["operator"]
    assert person.home is not None
    person.said("init", str(person.home), "--production", "--class", "edge")
    return person


def keys(person: Person, role: str, *numbers: int) -> list[Path]:
    assert person.home is not None
    return [person.home / f"keys/offline/{role}-{number}.pem" for number in numbers]


def test_a_role_is_asked_for_signed_and_taken_over_while_nothing_runs(operator: Person) -> None:
    asked = operator.said("key", "request", "emergency", "--out", "e.json")
    assert asked["says"][0].startswith("nothing but the time")
    for path in keys(operator, "emergency", 1, 3):
        signed = operator.said("key", "sign", "e.json", "--key", str(path), "--yes")
        assert signed["changed"]
    again = operator.said("key", "sign", "e.json", "--key", str(path), "--yes")
    assert not again["changed"]
    assert operator.said("key", "merge", "e.json")["changed"]
    shown = {role["role"]: role["version"] for role in operator.said("key", "show")["roles"]}
    assert shown["emergency"] == 2


def test_saying_no_signs_nothing(operator: Person) -> None:
    operator.said("key", "request", "targets", "--out", "t.json")
    before = (operator.folder / "t.json").read_bytes()
    (key,) = keys(operator, "targets", 1)
    done = operator.run("key", "sign", "t.json", "--key", str(key), answer="n\n")
    assert done.exit_code == 1
    assert "nothing was signed" in done.stdout
    assert (
        operator.said("key", "sign", "t.json", "--key", str(key), code=2)["error"] == "ConfigError"
    )
    assert (operator.folder / "t.json").read_bytes() == before


def test_an_outdated_request_says_what_to_do(operator: Person) -> None:
    """Two requests on top of the same version: the second one merged is refused, and the first again is harmless."""
    for name in ("slow.json", "fast.json"):
        operator.said("key", "request", "targets", "--out", name)
        if name == "fast.json":
            alter_expiry(operator.folder / name)
        for path in keys(operator, "targets", 1, 2):
            operator.said("key", "sign", name, "--key", str(path), "--yes")
    assert operator.said("key", "merge", "fast.json")["changed"]
    refused = operator.said("key", "merge", "slow.json", code=1)
    assert "this signing request is outdated" in refused["message"]
    assert "fleet key request targets" in refused["message"]
    assert not operator.said("key", "merge", "fast.json")["changed"]


def alter_expiry(path: Path) -> None:
    """Another content under the same version; nobody has signed it yet."""
    body = json.loads(path.read_text("utf-8"))
    body["metadata"]["signed"]["expires"] = "2099-01-01T00:00:00Z"
    path.write_text(json.dumps(body), "utf-8")


def test_a_key_or_a_file_that_is_not_the_right_one(operator: Person) -> None:
    operator.said("key", "request", "root", "--out", "r.json")
    (wrong,) = keys(operator, "targets", 1)
    refused = operator.said("key", "sign", "r.json", "--key", str(wrong), "--yes", code=3)
    assert "may not sign root" in refused["message"]
    assert operator.said("key", "request", "timestamp", code=2)["error"] == "RequestError"
    assert operator.said("key", "request", "release-none", code=2)["error"] == "RequestError"
    (operator.folder / "r.json").write_text("{}")
    refused = operator.said("key", "merge", "r.json", code=2)
    assert "is no signing request that is known here" in refused["message"]


def test_show_says_where_keys_are_and_what_is_to_be_signed(operator: Person) -> None:
    (gone,) = keys(operator, "root", 2)
    gone.unlink()
    roles = {role["role"]: role for role in operator.said("key", "show")["roles"]}
    assert [key["where"] for key in roles["root"]["keys"]] == [
        "here", "not here", "here", "here", "here",
    ]  # fmt: skip
    assert roles["timestamp"]["signed_by_server"]
    assert not any(role["due"] for role in roles.values())
    table = operator.run("key", "show").stdout
    for text in ("release-edge-2", "3 of 5", "2 of 3", "not"):
        assert text in table


def test_a_class_is_added_with_its_own_keys(operator: Person) -> None:
    asked = operator.said("key", "add-class", "drone", "--out", "c.json")
    assert asked["says"][0].startswith("adds the role release-drone: 2 of release-drone-1")
    for path in keys(operator, "targets", 2, 3):
        operator.said("key", "sign", "c.json", "--key", str(path), "--yes")
    assert operator.said("key", "merge", "c.json")["changed"]
    assert "release-drone" in {role["role"] for role in operator.said("key", "show")["roles"]}


def test_a_key_is_rotated_by_holders_who_are_elsewhere(
    operator: Person, people: "dict[str, Person]"
) -> None:
    assert operator.home is not None
    give_keys_away(operator.home, people)
    roles = {role["role"]: role for role in operator.said("key", "show")["roles"]}
    lost = next(key["id"] for key in roles["root"]["keys"] if key["name"] == "root-2")
    asked = operator.said("key", "rotate", "root", "--revoke", lost, "--out", "r.json", code=4)
    assert (asked["role"], asked["revoked"]) == ("root", lost)
    assert [need["by"] for need in asked["needs"]] == ["current root", "new root"]
    new_key = Path(asked["key_file"])
    assert new_key.parent == operator.home / "keys/offline"
    for name, key in (("anna", "root-1"), ("cleo", "root-3"), ("anna", "root-4")):
        person = people[name]
        shutil.copy(operator.folder / "r.json", person.folder / "r.json")
        person.said("key", "sign", "r.json", "--key", f"{key}.pem", "--root", "root.json", "--yes")
        shutil.copy(person.folder / "r.json", operator.folder / f"{key}.json")
    copies = [f"root-{number}.json" for number in (1, 3, 4)]
    assert operator.said("key", "merge", *copies[:2], "--out", "m.json", code=4)["needs"][0][
        "signed"
    ]
    assert operator.said("key", "merge", *copies)["changed"]
    (root,) = (one for one in operator.said("key", "show")["roles"] if one["role"] == "root")
    assert root["version"] == 2
    assert lost not in [key["id"] for key in root["keys"]]
    assert new_key.stem in [key["name"] for key in root["keys"]]
    first = (people["anna"].folder / "root.json").read_bytes()
    Reader(first, device_class="edge").refresh(offered(operator.home), None, time.time())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--production",), "name them, --class camera"),
        (("--class", "camera"), "go with --production"),
        (("--production", "--class", "A/B"), "is not of the form"),
    ],
)
def test_init_that_cannot_be(
    people: "dict[str, Person]", options: tuple[str, ...], problem: str
) -> None:
    person = people["anna"]
    refused = person.said("init", "made", *options, code=2)
    assert problem in refused["message"]
    assert not (person.folder / "made").exists()
