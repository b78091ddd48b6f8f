"""The door of a running fleet manager: tokens, roles, scopes, and what the audit log says of it."""

import re
from typing import Any

import httpx

from fleet.api.door import Door
from fleet.operators import audit_log, tokens
from fleet.operators.access import OPEN, RULES
from fleet.operators.chain import Entry
from fleet.operators.roles import LOCAL, Role, Scope
from fleet.operators.tokens import Wanted

Lab = Any


def made(lab: Lab, name: str, role: Role, scope: Scope | None = None) -> dict[str, str]:
    """The header of a new token."""
    with lab.manager.store.begin() as connection:
        wanted = Wanted(name, role, scope=scope or Scope())
        token = tokens.create(connection, wanted, LOCAL, lab.manager.services.now_s()).token
    return {"authorization": f"Bearer {token}"}


def written(lab: Lab) -> list[Entry]:
    with lab.manager.store.read() as connection:
        return list(audit_log.entries_after(connection))


def said(entry: Entry) -> tuple[str, str, str, str, str]:
    return (entry.name, entry.role, entry.operation, entry.object, entry.outcome)


def message(response: httpx.Response, status: int, error: str) -> str:
    assert response.status_code == status, response.text
    assert response.json()["error"] == error
    return str(response.json()["message"])


async def test_every_route_is_in_the_table_and_every_line_of_it_is_a_route(lab: Lab) -> None:
    described = (await lab.http.get("/openapi.json")).json()
    routes = {
        (method.upper(), path) for path, methods in described["paths"].items() for method in methods
    }
    assert routes == {(rule.method, rule.path) for rule in RULES}
    for path, methods in described["paths"].items():
        for method, about in methods.items():
            assert about["security"] == [{"HTTPBearer": []}], (method, path)
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


async def test_each_role_gets_as_far_as_the_table_says(lab: Lab) -> None:
    """What is let in is answered by the handler, if only that there is no such thing."""
    headers = {role: made(lab, f"a-{role}", role) for role in Role}
    for rule in RULES:
        path = re.sub(r"\{\w+\}", "x", rule.path)
        for role in Role:
            answer = await lab.http.request(rule.method, path, headers=headers[role])
            assert (answer.status_code == 403) is not role.covers(rule.role), (rule, role)
        nobody = await lab.http.request(rule.method, path, headers={"authorization": ""})
        assert nobody.status_code == 401, rule


async def test_a_stranger_gets_the_description_and_nothing_else(lab: Lab) -> None:
    base = str(lab.http.base_url)
    async with httpx.AsyncClient(base_url=base, timeout=90) as stranger:
        for path in OPEN:
            assert (await stranger.get(path)).status_code == 200
        for path in ("/v1/status", "/v1/nothing", "/", "/docs/", "/openapi.json/x"):
            answer = await stranger.get(path)
            assert "this needs a token" in message(answer, 401, "UnauthenticatedError")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert written(lab) == []  # who only looks is no line


async def test_a_websocket_is_closed_at_the_door(lab: Lab) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def nothing(*_arguments: Any) -> Any:
        raise AssertionError("it got past the door")

    await Door(nothing, lab.manager.operators)({"type": "websocket"}, nothing, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_two_authorizations_are_none(lab: Lab) -> None:
    good = lab.http.headers["authorization"]
    request = httpx.Request(
        "GET", lab.http.base_url.join("/v1/status"),
        headers=[("authorization", good), ("authorization", good)],
    )  # fmt: skip
    assert (await lab.http.send(request)).status_code == 401


async def test_what_is_done_is_in_the_log_with_who_did_it(lab: Lab) -> None:
    ci = made(lab, "ci", Role.OPERATOR)
    body = await lab.bundle_body()
    assert (await lab.http.post("/v1/bundles", json=body, headers=ci)).status_code == 200
    spec = {"bundle": "bundles/edge/m-1", "stages": [{"percent_bp": 10000, "bake_s": 1}]}
    started = await lab.http.post("/v1/rollouts?force=true", json=spec, headers=ci)
    assert started.status_code == 201, started.text
    for event in ("pause", "fly", "resume"):
        await lab.http.post(f"/v1/rollouts/r1/{event}", json={"reason": "lunch"}, headers=ci)
    entries = written(lab)
    assert [said(entry) for entry in entries] == [
        ("ci", "operator", "bundle publish", "bundles/edge/m-1", "done"),
        ("ci", "operator", "rollout start", "r1", "done"),
        ("ci", "operator", "rollout pause", "r1", "done"),
        ("ci", "operator", "rollout change", "/v1/rollouts/r1/fly", "refused"),
        ("ci", "operator", "rollout resume", "r1", "done"),
    ]
    assert [entry.reason[:20] for entry in entries[2:4]] == ["lunch", "'fly' is nothing an "]
    shown = (await lab.http.get("/v1/audit", params={"limit": 2})).json()
    assert [one["number"] for one in shown["entries"]] == [5, 4]
    assert shown["head"] == str(entries[-1].head)
    assert audit_log.read_head(lab.manager.home.audit_head) == entries[-1].head
    decisions = (await lab.http.get("/v1/rollouts/r1/decisions")).json()["decisions"]
    by = {
        one["action"]: one["evidence"].get("by") for one in decisions if one["actor"] == "operator"
    }
    assert by == {"start": "ci", "pause": "ci", "resume": "ci"}


async def test_what_is_refused_is_in_the_log_too(lab: Lab) -> None:
    viewer = made(lab, "ada", Role.VIEWER)
    answer = await lab.http.post("/v1/rollouts", json={}, headers=viewer)
    words = message(answer, 403, "ForbiddenError")
    assert words.startswith("`rollout start` needs the role operator")
    wrong = {"authorization": "Bearer muster_nothing"}
    message(await lab.http.get("/v1/status", headers=wrong), 401, "UnauthenticatedError")
    message(await lab.http.post("/v1/tokens", json={"role": "x"}), 422, "RequestError")
    assert [said(entry) for entry in written(lab)] == [
        ("ada", "viewer", "rollout start", "/v1/rollouts", "refused"),
        ("nobody", "", "status", "/v1/status", "refused"),
        ("local", "admin", "token create", "/v1/tokens", "refused"),
    ]


async def test_a_scope_keeps_to_its_models_and_classes(lab: Lab) -> None:
    await lab.http.post("/v1/bundles", json=await lab.bundle_body())
    spec = {"bundle": "bundles/edge/m-1", "stages": [{"percent_bp": 10000, "bake_s": 1}]}
    await lab.http.post("/v1/rollouts?force=true", json=spec)
    other = made(lab, "other", Role.OPERATOR, Scope(("n",)))
    for path, body in (
        ("/v1/rollouts/r1/pause", {}),
        ("/v1/rollouts?force=true&supersede=true", spec),
        ("/v1/bundles", await lab.bundle_body()),
    ):
        words = message(await lab.http.post(path, json=body, headers=other), 403, "ForbiddenError")
        assert "is for model=n and not for model m on class edge" in words
    shown = (await lab.http.get("/v1/rollouts/r1", headers=other)).json()
    assert shown["state"] == "running"  # nothing was changed, and everything is seen
    own = made(lab, "own", Role.OPERATOR, Scope(("m",), ("edge",)))
    assert (await lab.http.post("/v1/rollouts/r1/pause", json={}, headers=own)).status_code == 200


async def test_tokens_are_made_and_taken_back_by_admins(lab: Lab) -> None:
    body = {"name": "ci", "role": "operator", "scope": {"model": ["m"]}, "life_s": 3600}
    answer = await lab.http.post("/v1/tokens", json=body)
    assert answer.status_code == 201, answer.text
    token = answer.json()["token"]
    header = {"authorization": f"Bearer {token}"}
    assert (await lab.http.get("/v1/status", headers=header)).status_code == 200
    listed = (await lab.http.get("/v1/tokens", headers=header)).json()["tokens"]
    assert [(one["name"], one["state"]) for one in listed] == [("ci", "good")]
    assert token not in str(listed)
    message(await lab.http.post("/v1/tokens", json=body), 409, "ConflictError")
    message(await lab.http.post("/v1/tokens/ci/revoke", headers=header), 403, "ForbiddenError")
    assert (await lab.http.post("/v1/tokens/ci/revoke")).json() == {"name": "ci"}
    message(await lab.http.get("/v1/status", headers=header), 401, "UnauthenticatedError")
    outcomes = [(one.operation, one.object, one.outcome) for one in written(lab)]
    assert outcomes == [
        ("token create", "ci", "done"),
        ("token create", "ci", "refused"),
        ("token revoke", "/v1/tokens/ci/revoke", "refused"),
        ("token revoke", "ci", "done"),
        ("status", "/v1/status", "refused"),
    ]


async def test_who_guesses_is_slowed_down(lab: Lab) -> None:
    wrong = {"authorization": "Bearer muster_nothing"}
    answers = [await lab.http.get("/v1/status", headers=wrong) for _ in range(12)]
    assert {answer.status_code for answer in answers[:10]} == {401}
    assert answers[-1].status_code == 429
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 6
    assert (
        await lab.http.get("/v1/status")
    ).status_code == 200  # whoever may read the folder is let in


async def test_a_bug_in_a_change_is_in_the_log(lab: Lab, monkeypatch: Any) -> None:
    async def broken(_name: str) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(lab.manager.webhooks, "test", broken)
    message(await lab.http.post("/v1/webhooks/chat/test"), 500, "ServerError")
    [entry] = written(lab)
    assert (entry.operation, entry.outcome) == ("webhook test", "failed")
    assert "secret" not in entry.reason
