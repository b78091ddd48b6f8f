"""`fleet bundle` against a real fleet manager: what is sent, what is signed, what is refused, and how it is said."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from agent.bundle.folder import read_bundle
from fleet.artifacts.publish import PublishRequest, publish_folder
from fleet.cli.bundle import app
from fleet.cli.client import FleetClient
from tests.support.bundles import build_tiny, tiny_project
from tests.support.fleet import FleetHost


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetHost]:
    host = FleetHost(tmp_path_factory.mktemp("bundles") / "home", "none", name="bundles")
    host.init()
    host.start()
    yield host
    host.stop()


def said(host: FleetHost, *arguments: str, code: int = 0) -> Any:
    """What a command prints as JSON; it must end with ``code``."""
    done = invoked(host, *arguments, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def shown(host: FleetHost, *arguments: str) -> str:
    """What a command shows people."""
    done = invoked(host, *arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def invoked(host: FleetHost, *arguments: str) -> Result:
    env = {"MUSTER_HOME": str(host.home), "MUSTER_SERVER": host.server}
    return CliRunner().invoke(app, arguments, env=env, catch_exceptions=False)


def test_build_inspect_and_verify(host: FleetHost, tmp_path: Path) -> None:
    project, out = tiny_project(tmp_path), str(tmp_path / "out")
    built = said(host, "build", str(project), "--out", out)
    assert built["bundle"] == "bundles/edge/tiny-1.0.0"
    assert (built["golden_cases"], built["warnings"]) == (1, [])
    inspected = said(host, "inspect", out)
    assert inspected["manifest_sha256"] == built["manifest_sha256"]
    assert inspected["stages"][0]["file"] == "model.onnx"
    table = shown(host, "inspect", out)
    for text in ("model.onnx", "FP32", "any × 4", "-100 … 100", "small", "latency_ms"):
        assert text in table
    assert inspected["refusal"] == ""
    assert "refuses" not in table
    assert said(host, "verify", out)["measures"]["golden_cases"] == 1

    (tmp_path / "out" / "model.onnx").write_bytes(b"other")
    assert "Every device refuses it: model.onnx is not an ONNX model" in shown(host, "inspect", out)
    refused = said(host, "verify", out, code=3)
    assert "'model.onnx' has 5 bytes, the manifest says" in refused["message"]
    refused = said(host, "publish", out, code=3)
    assert "'model.onnx' has 5 bytes" in refused["message"]


def test_build_goes_beside_where_one_stands_and_can_be_repeated(
    host: FleetHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    project = tiny_project(tmp_path)
    first = said(host, "build", str(project))
    assert first["path"] == "bundles/tiny-1.0.0"
    assert said(host, "build", str(project)) | {"measures": 0} == first | {"measures": 0}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert (
        "must be whole seconds since 1970" in said(host, "build", str(project), code=2)["message"]
    )


def test_golden_cases_without_outputs_are_recorded_on_demand(
    host: FleetHost, tmp_path: Path
) -> None:
    project, out = tiny_project(tmp_path), str(tmp_path / "out")
    text = (project / "muster.toml").read_text("utf-8")
    (project / "muster.toml").write_text(
        text.replace('outputs = { y = "golden/y.npy" }', ""), "utf-8"
    )
    refused = said(host, "build", str(project), "--out", out, code=3)
    assert "fleet bundle build --record-golden" in refused["message"]
    assert said(host, "build", str(project), "--out", out, "--record-golden")["golden_cases"] == 1


def test_publishing_sends_what_is_missing_and_repeating_it_changes_nothing(
    host: FleetHost, tmp_path: Path
) -> None:
    first = build_tiny(tmp_path, "1.0.0", model="sent", padding_bytes=600_000)
    done = said(host, "publish", str(first.path))
    assert done["path"] == "bundles/edge/sent-1.0.0"
    assert (done["changed"], done["release"]) == (True, 1)
    assert done["sent_bytes"] == done["size_bytes"] == first.manifest.size_bytes
    assert done["manifest_sha256"] == first.manifest_sha256

    again = said(host, "publish", str(first.path))
    assert (again["changed"], again["release"], again["sent_pieces"]) == (False, 1, 0)

    second = build_tiny(tmp_path, "1.1.0", model="sent")
    done = said(host, "publish", str(second.path), "--release", "2", "--min-release", "1")
    assert (done["release"], done["sent_pieces"]) == (2, 2), (
        "the model and the bill of materials: the golden files were there already"
    )
    listed = {row["path"]: row for row in said(host, "list")["bundles"]}
    assert listed["bundles/edge/sent-1.1.0"]["release"] == 2
    assert "bundles/edge/sent-1.1.0" in shown(host, "list")


def test_a_piece_damaged_at_the_server_is_sent_again(host: FleetHost, tmp_path: Path) -> None:
    built = build_tiny(tmp_path, "1.0.0", model="rotten")
    said(host, "publish", str(built.path))
    digest = built.manifest.file("model.onnx").pieces[0].sha256
    (stored,) = (host.home / "artifacts").rglob(digest)
    stored.write_bytes(b"rot")
    assert said(host, "publish", str(built.path))["sent_pieces"] == 1
    assert stored.read_bytes() == (built.path / "model.onnx").read_bytes()


def test_another_content_under_the_same_version_is_refused(host: FleetHost, tmp_path: Path) -> None:
    said(host, "publish", str(build_tiny(tmp_path / "a", model="same").path))
    other = build_tiny(tmp_path / "b", model="same", factor=3.0)
    refused = said(host, "publish", str(other.path), code=1)
    assert "bundles/edge/same-1.0.0 is published already with another content" in refused["message"]
    assert "give the bundle a new version" in refused["message"]


def test_an_unexpected_release_number_is_refused(host: FleetHost, tmp_path: Path) -> None:
    built = build_tiny(tmp_path, model="numbered")
    refused = said(host, "publish", str(built.path), "--release", "7", code=3)
    assert "is release 1 of numbered for class edge, not 7" in refused["message"]
    assert "Nothing was published" in refused["message"]
    refused = said(host, "publish", str(built.path), "--min-release", "9", code=3)
    assert "min_release 9 is above the release number 1" in refused["message"]


def test_a_key_that_is_not_there_or_not_the_fleets_is_refused(
    host: FleetHost, tmp_path: Path
) -> None:
    built = build_tiny(tmp_path, model="keyed")
    refused = said(host, "publish", str(built.path), "--key", str(tmp_path / "none"), code=2)
    assert "there is no release key at" in refused["message"]
    stranger = FleetHost(tmp_path / "stranger", "none", name="stranger")
    stranger.init()
    key = str(stranger.home / "keys" / "release.pem")
    refused = said(host, "publish", str(built.path), "--key", key, code=3)
    assert refused["error"] == "RefusedError"
    assert "keyed-1.0.0" not in json.dumps(said(host, "list"))


def test_a_server_that_does_not_answer_is_said(tmp_path: Path, host: FleetHost) -> None:
    built = build_tiny(tmp_path, model="alone")
    refused = said(host, "publish", str(built.path), "--server", "http://127.0.0.1:9", code=1)
    assert "is `fleet serve` running?" in refused["message"]


def test_hostile_names_are_shown_as_they_are(host: FleetHost, tmp_path: Path) -> None:
    built = build_tiny(tmp_path)
    raw = (built.path / "manifest.json").read_bytes()
    hostile = raw.replace(b'"name":"main"', b'"name":"[red]main[/red]"')
    (built.path / "manifest.json").write_bytes(hostile)
    assert read_bundle(built.path)[0].stages[0].name == "[red]main[/red]"
    assert "[red]main[/red]" in shown(host, "inspect", str(built.path))


def test_a_bundle_published_in_between_is_signed_on_top_of(host: FleetHost, tmp_path: Path) -> None:
    ours = build_tiny(tmp_path, "1.0.0", model="raced")
    theirs = build_tiny(tmp_path, "2.0.0", model="raced")

    class Overtaken(FleetClient):
        """Somebody else publishes right after the release role was read for the first time."""

        reads = 0

        def get_bytes(self, path: str) -> bytes:
            current = super().get_bytes(path)
            self.reads += 1
            if self.reads == 1:
                assert said(host, "publish", str(theirs.path))["release"] == 1
            return current

    key = host.home / "keys" / "release.pem"
    with Overtaken(host.server, host.token) as client:
        done = publish_folder(client, PublishRequest(ours.path, key, time.time()))
        assert client.reads == 2
    assert (done.changed, done.release) == (True, 2)
    paths = {row["path"] for row in said(host, "list")["bundles"]}
    assert {"bundles/edge/raced-1.0.0", "bundles/edge/raced-2.0.0"} <= paths
