"""Attacks on the people's side: each is refused with its reason, and the fleet manager goes on as before."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from fleet.cli.init import make_home
from fleet.daemon import FleetManager, running
from fleet.errors import RefusedError
from fleet.home import Home
from fleet.operators import folder
from fleet.operators.roles import Role
from fleet.operators.secret import make_token
from fleet.operators.tokens import Wanted
from fleet.store import open_store
from tests.support.ephemeral import CONFIG


@dataclass
class Attacked:
    """A fleet manager, and a client without a token."""

    manager: FleetManager
    http: httpx.AsyncClient

    @property
    def home(self) -> Home:
        return self.manager.home

    def bearer(self, token: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token}"}

    async def reason(self, method: str, path: str, status: int, **more: object) -> str:
        """Why it is refused; and the fleet manager goes on for who may ask."""
        answer = await self.http.request(method, path, **more)  # type: ignore[arg-type]
        assert answer.status_code == status, answer.text
        local = self.bearer(self.home.local_token.read_text().strip())
        assert (await self.http.get("/v1/status", headers=local)).status_code == 200
        return str(answer.json()["message"])


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Attacked]:
    home = Home(tmp_path / "fleet")
    make_home(home, "lab", time.time())
    async with running(home, CONFIG) as manager:
        assert manager.addresses is not None
        async with httpx.AsyncClient(base_url=manager.addresses.api, timeout=90) as client:
            yield Attacked(manager, client)


async def test_a_process_of_another_user_on_the_fleet_host(fleet: Attacked) -> None:
    """Loopback alone lets nobody in, and what would is for the owner of the folder alone to read."""
    said = await fleet.reason("POST", "/v1/rollouts/r1/rollback", 401, json={})
    assert "this needs a token" in said
    for secret in (fleet.home.run_file, fleet.home.local_token):
        assert secret.stat().st_mode & 0o777 == 0o600
    assert json.loads(fleet.home.run_file.read_text())["token"]


async def test_a_web_page_that_an_operator_visits(fleet: Attacked) -> None:
    token = fleet.home.local_token.read_text().strip()
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        said = await fleet.reason(
            "POST", "/v1/rollouts/r1/rollback", 403, headers={**headers, **fleet.bearer(token)}
        )
        assert "is not this machine" in said


async def test_a_token_that_was_stolen_and_revoked(fleet: Attacked) -> None:
    token = folder.create_token(fleet.home, Wanted("ci", Role.ADMIN)).token
    assert (await fleet.http.get("/v1/status", headers=fleet.bearer(token))).status_code == 200
    folder.revoke_token(fleet.home, "ci")  # in another process, while this one runs
    body = {"name": "back-door", "role": "admin"}
    stolen = await fleet.reason("POST", "/v1/tokens", 401, json=body, headers=fleet.bearer(token))
    guessed = fleet.bearer(make_token(bytes(range(32))))
    never_was = await fleet.reason("POST", "/v1/tokens", 401, json=body, headers=guessed)
    assert stolen == never_was  # who has a token cannot find out whether it ever was one
    assert [one["state"] for one in folder.list_tokens(fleet.home)] == ["revoked"]


async def test_a_token_that_makes_itself_more(fleet: Attacked) -> None:
    token = folder.create_token(fleet.home, Wanted("ci", Role.OPERATOR)).token
    mine = fleet.bearer(token)
    body = {"name": "more", "role": "admin"}
    said = await fleet.reason("POST", "/v1/tokens", 403, json=body, headers=mine)
    assert "`token create` needs the role admin" in said
    for path in (
        "/v1/tokens/",
        "//v1/tokens",
        "/v1/tokens/%2e%2e/tokens",
        "/V1/tokens",
        "/v1/./tokens",
    ):
        answer = await fleet.http.post(path, json=body, headers=mine)
        assert answer.status_code in {403, 404, 405}, path
    for headers in ({"x-forwarded-for": "127.0.0.1"}, {"x-http-method-override": "GET"}):
        await fleet.reason("POST", "/v1/tokens", 403, json=body, headers={**mine, **headers})
    assert [one["name"] for one in folder.list_tokens(fleet.home)] == ["ci"]


async def test_guessing_tokens(fleet: Attacked) -> None:
    """Slowed down, written down within bounds, and no reason for anybody else to wait."""
    for number in range(11):
        guess = fleet.bearer(make_token(bytes([number] * 32)))
        answer = await fleet.http.get("/v1/status", headers=guess)
    assert answer.status_code == 429
    assert "too many attempts" in answer.json()["message"]
    await fleet.reason("GET", "/v1/status", 429, headers=fleet.bearer("muster_short"))
    entries = folder.list_entries(fleet.home, 100)
    assert 11 <= len(entries) <= 20
    assert {(one.name, one.outcome) for one in entries} == {("nobody", "refused")}


def _tamper(home: Home, *statements: str) -> None:
    store = open_store(home.database)
    with store.begin() as connection:
        for change in ("update", "delete"):
            connection.execute(text(f"DROP TRIGGER IF EXISTS audit_log_no_{change}"))
        for statement in statements:
            connection.execute(text(statement))
    store.close()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE audit_log SET name = 'mallory' WHERE number = 1", "entry 1 .* was altered"),
        ("DELETE FROM audit_log WHERE number = 1", "entries are missing"),
        ("DELETE FROM audit_log WHERE number = 2", "the newest 1 were cut off"),
        (
            "UPDATE audit_log SET number = -number; UPDATE audit_log SET number = 3 + number",
            "does not follow",
        ),
    ],
)
def test_covering_ones_tracks_in_the_audit_log(tmp_path: Path, statement: str, says: str) -> None:
    home = Home(tmp_path / "fleet")
    make_home(home, "lab", time.time())
    for name in ("ada", "bob"):
        folder.create_token(home, Wanted(name, Role.VIEWER))
    assert folder.verify_log(home).number == 2
    _tamper(home, *statement.split("; "))
    with pytest.raises(RefusedError, match=says):
        folder.verify_log(home)


def test_a_whole_log_written_anew_by_who_owns_the_folder(tmp_path: Path) -> None:
    """Nothing in the folder can tell; a head that was kept elsewhere can."""
    home = Home(tmp_path / "fleet")
    make_home(home, "lab", time.time())
    folder.create_token(home, Wanted("mallory", Role.ADMIN))
    kept = folder.verify_log(home)
    _tamper(home, "DELETE FROM audit_log")
    home.audit_head.unlink()
    folder.create_token(home, Wanted("ada", Role.VIEWER))
    assert folder.verify_log(home).number == 1
    with pytest.raises(RefusedError, match="is not the one that was written"):
        folder.verify_log(home, kept)
