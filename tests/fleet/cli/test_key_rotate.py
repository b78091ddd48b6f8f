"""`fleet key rotate` in a fleet folder, and a device that follows."""

import json
import time
from pathlib import Path

import pytest
import typer
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner
from typer.testing import CliRunner, Result

from fleet.cli.init import make_home
from fleet.cli.key_rotate import rotate
from fleet.home import Home
from fleet.repository import Repository
from fleet.repository.request import read_request
from tests.support.signed_fleet import OfferedFiles, Reader

app = typer.Typer()
app.command()(rotate)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "fleet")
    make_home(made, "lab", time.time())
    return made


def run(home: Home, *arguments: str) -> Result:
    return CliRunner().invoke(
        app,
        [*arguments, "--home", str(home.path)],
        env={"COLUMNS": "200", "MUSTER_KEY_PASSWORD": ""},
    )


def said(result: Result) -> str:
    return " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("role", "versions", "next_step"),
    [
        ("root", {"root": 2}, "keep {home}/keys/root.pem away from this machine"),
        ("targets", {"targets": 2, "root": 2}, "keep {home}/keys/targets.pem away"),
        ("release", {"targets": 2, "release": 2}, "keep {home}/keys/release.pem away"),
        ("rollout", {"targets": 2, "rollout": 2}, "The new key is {home}/keys/rollout.pem"),
        ("timestamp", {"root": 2}, "The new key is {home}/keys/timestamp.pem"),
    ],
)
def test_a_role_gets_a_new_key_and_a_device_follows(
    home: Home, role: str, versions: dict[str, int], next_step: str
) -> None:
    first = home.root.read_bytes()
    device = Reader(first)
    device.refresh(OfferedFiles(Repository(home.path), {}), None, time.time())
    done = run(home, role, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["versions"] == versions
    assert told["added"] != told["revoked"]
    repository = Repository(home.path)
    device.refresh(OfferedFiles(repository, {}), repository.pack(), time.time())
    newest = repository.generation.roots[-1].content
    assert home.root.read_bytes() == newest
    Reader(newest).refresh(OfferedFiles(repository, {}), None, time.time())
    again = run(home, role)
    assert again.exit_code == 0, again.output
    assert next_step.format(home=home.path) in " ".join(again.stdout.split())


def test_a_key_that_was_made_elsewhere(home: Home, tmp_path: Path) -> None:
    key = tmp_path / "new.pem"
    key.write_bytes(CryptoSigner.generate_ed25519().private_bytes)
    done = run(home, "rollout", "--new-key", str(key))
    assert done.exit_code == 0, done.output
    assert f'[keys] rollout = "file:{key}"' in done.stdout
    config = home.config.read_text()
    home.config.write_text(config.replace('rollout = ""', f'rollout = "file:{key}"', 1))
    assert run(home, "targets").exit_code == 0
    assert run(home, "rollout").exit_code == 0


def test_the_holder_of_an_encrypted_key_is_asked_once(home: Home, tmp_path: Path) -> None:
    place = home.path / "keys" / "root.pem"
    private = load_pem_private_key(place.read_bytes(), None)
    away = tmp_path / "root.pem"
    away.write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"sesame"))
    )
    place.unlink()
    arguments = ["timestamp", "--key", str(away), "--home", str(home.path)]
    wrong = CliRunner().invoke(app, arguments, input="nonsense\n", env={"MUSTER_KEY_PASSWORD": ""})
    assert wrong.exit_code == 2
    done = CliRunner().invoke(app, arguments, input="sesame\n", env={"MUSTER_KEY_PASSWORD": ""})
    assert done.exit_code == 0, done.output
    assert "sesame" not in done.output


def test_a_public_key_whose_holder_has_to_sign(home: Home, tmp_path: Path) -> None:
    public = load_pem_private_key(CryptoSigner.generate_ed25519().private_bytes, None).public_key()
    path = tmp_path / "holder.pub.pem"
    path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    asked = tmp_path / "request.json"
    result = run(home, "root", "--new-key", str(path), "--out", str(asked))
    assert result.exit_code == 4
    text = " ".join(result.stdout.split())
    assert "0 of 1 signatures that the new root asks for; 1 more of" in text
    assert "1 of 1 signatures that the current root asks for (by root)" in text
    assert read_request(asked).role == "root"


def test_what_is_refused(home: Home, tmp_path: Path) -> None:
    both = run(home, "root", "--generate", "--new-key", "x.pem")
    assert both.exit_code == 2
    assert "give one of them" in said(both)
    unknown = run(home, "nobody")
    assert unknown.exit_code == 1
    assert "there is no role nobody; there are " in said(unknown)
    missing = run(home, "snapshot", "--new-key", str(tmp_path / "missing.pem"))
    assert missing.exit_code == 2
    assert "No such file" in said(missing)
    (home.path / "keys" / "root.pem").rename(tmp_path / "root.pem")
    asked = tmp_path / "request.json"
    away = run(home, "snapshot", "--out", str(asked), "--json")
    assert away.exit_code == 4
    assert json.loads(away.stdout)["needs"][0]["missing"] == ["root"]
    assert read_request(asked).role == "root"
    assert run(home, "snapshot", "--key", str(tmp_path / "root.pem")).exit_code == 0


def test_a_running_fleet_manager_is_not_disturbed(home: Home) -> None:
    with home.locked():
        result = run(home, "timestamp")
    assert result.exit_code == 2
    assert "stop it first" in said(result)
    assert Repository(home.path).generation.root.version == 1
