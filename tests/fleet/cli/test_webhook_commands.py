"""`fleet webhook` against a fleet manager that listens, and tells a receiver."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.cli import conftest
from tests.fleet.cli.conftest import Served, Until
from tests.support.receiver import Receiver, Reply, receiving


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Listens; the fleet manager that is made next tells it."""
    secret = tmp_path / "chat.secret"
    secret.write_text("whsec_" + base64.b64encode(b"k" * 32).decode())
    secret.chmod(0o600)
    with receiving() as one:
        table = f'[[webhook]]\nname = "chat"\nurl = "{one.url}/x"\nsecret_file = "{secret}"\n'
        monkeypatch.setattr(conftest, "CONFIG", conftest.CONFIG + table)
        yield one


def test_a_rollout_is_told_and_a_webhook_is_tested(
    receiver: Receiver, served: Served, until: Until
) -> None:
    tested = served.run("webhook", "test", "chat")
    assert tested.exit_code == 0, tested.output
    assert tested.stdout.startswith("chat: taken with status 204 in ")
    served.lab.register()
    release = served.lab.release("1")
    assert served.run("rollout", "start", release.path).exit_code == 0
    until(lambda: len(receiver.got) == 2)
    told = json.loads(receiver.got[1].body)
    assert told["type"] == "rollout.started"
    assert told["data"]["link"] == f"{served.server}/v1/rollouts/r1"

    receiver.usual = Reply(503)
    refused = served.run("webhook", "test", "chat", "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["error"] == "answered with status 503"
    assert served.run("rollout", "pause", "r1").exit_code == 0
    until(lambda: "answered with status 503" in served.run("webhook", "list").stdout)
    listed = json.loads(served.run("webhook", "list", "--json").stdout)["webhooks"][0]
    assert (listed["delivered"], listed["pending"], listed["failures"] > 0) == (1, 1, True)
    assert "1, next try in" in served.run("webhook", "list").stdout
    assert "pending 1, given up 0, failing chat" in served.run("status").stdout
    unknown = served.run("webhook", "test", "pager")
    assert unknown.exit_code == 1
    assert "there is no webhook 'pager'; known: chat" in " ".join(unknown.stderr.split())


def test_without_webhooks_there_is_nothing_to_list(served: Served) -> None:
    assert "none; add [[webhook]] to fleet.toml" in served.run("webhook", "list").stdout
    missing = served.run("webhook", "test", "chat")
    assert "none is configured: see [[webhook]] in fleet.toml" in " ".join(missing.stderr.split())
