"""The HTTP API over a running fleet manager: answers, errors, and what is refused at the door."""

import json
from hashlib import sha256
from typing import Any

import httpx
import pytest

from agent.inventory import Machine
from agent.trust.status import TrustStatus
from fleet.api.publish import restore_bundle_rows
from fleet.registry import Way
from fleet.store.tables import bundles
from tests.support.reports import batch, event, inventory, window
from tests.support.signed_fleet import raw_manifest

Lab = Any
PATH = "bundles/edge/m-1"


def problem(response: httpx.Response, status: int, error: str) -> str:
    """The message of an error answer."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "message"}
    assert body["error"] == error
    return str(body["message"])


async def test_status_of_an_empty_fleet(lab: Lab) -> None:
    status = (await lab.http.get("/v1/status")).json()
    assert status["fleet"] == "lab"
    assert (status["devices"], status["online"], status["bundles"]) == (0, 0, 0)
    assert status["broker"] == {"mode": "none", "connected": False}
    assert status["pack_bytes"] > 0


async def test_devices_page_by_page_and_one_in_detail(lab: Lab) -> None:
    for name in ("d1", "d2", "d3"):
        await lab.manager.ingest.submit(name, batch(inventory(name)))
    await lab.manager.ingest.submit("d2", batch(window("d2", seq=2), event("d2", seq=3)))
    await lab.manager.ingest.present("d2", Way.MQTT, True)
    first = (await lab.http.get("/v1/devices", params={"limit": 2})).json()
    assert [one["id"] for one in first["devices"]] == ["d1", "d2"]
    assert first["devices"][0]["models"][0]["version"] == "1.0.0"
    rest = (await lab.http.get("/v1/devices", params={"after": first["next"]})).json()
    assert ([one["id"] for one in rest["devices"]], rest["next"]) == (["d3"], "")
    detail = (await lab.http.get("/v1/devices/d2")).json()
    assert detail["online"] is True
    assert detail["labels"] == {"site": "lab"}
    assert [one["phase"] for one in detail["deployments"]] == ["fetch"]
    assert detail["windows"][0]["requests"] == 100
    assert detail["events"][0]["reason"] == ""


async def test_what_a_device_refused_of_the_metadata_is_shown(lab: Lab) -> None:
    refused = TrustStatus().after_refusal("rollback", "older than accepted", 1_800_000_000.0)
    report = Machine("d1", "edge", "x86_64").report((), None, trust=refused)
    sent = inventory("d1")
    sent.inventory.CopyFrom(report)
    await lab.manager.ingest.submit("d1", batch(sent))
    detail = (await lab.http.get("/v1/devices/d1")).json()
    assert detail["trust"] == {
        "refusal_code": "rollback",
        "refusal": "older than accepted",
        "refused_s": 1_800_000_000.0,
        "refused": 1,
        "refusing": True,
        "notices": [],
    }


async def test_an_unknown_device_is_told(lab: Lab) -> None:
    message = problem(await lab.http.get("/v1/devices/d9"), 404, "NotFoundError")
    assert message.startswith("no device 'd9'")


async def test_publishing_a_bundle_and_repeating_it(lab: Lab) -> None:
    body = await lab.bundle_body()
    before = lab.manager.feed.version
    first = (await lab.http.post("/v1/bundles", json=body)).json()
    assert (first["path"], first["changed"], first["release"]) == (PATH, True, 1)
    assert lab.manager.feed.version == before + 1
    again = (await lab.http.post("/v1/bundles", json=body)).json()
    assert again == {**first, "changed": False}
    listed = (await lab.http.get("/v1/bundles")).json()["bundles"]
    assert [one["path"] for one in listed] == [PATH]
    assert listed[0]["manifest_sha256"] == first["manifest_sha256"]
    release = await lab.http.get("/v1/repository/release")
    assert json.loads(release.content)["signed"]["version"] == first["release_version"]
    assert release.headers["x-release-version"] == str(first["release_version"])


async def test_a_bundle_without_its_pieces_is_refused(lab: Lab) -> None:
    body = await lab.signed_body(raw_manifest("m", "1", "edge"), "1")
    message = problem(await lab.http.post("/v1/bundles", json=body), 400, "RefusedError")
    assert message.startswith(f"{PATH} cannot be published: 1 of its 1 pieces are not here")
    assert (await lab.http.get("/v1/bundles")).json() == {"bundles": []}


async def test_another_content_under_the_same_path_is_refused(lab: Lab) -> None:
    stale = await lab.bundle_body(note="other")
    await lab.http.post("/v1/bundles", json=await lab.bundle_body())
    message = problem(await lab.http.post("/v1/bundles", json=stale), 409, "ConflictError")
    assert "published already with another content" in message


async def test_two_who_publish_at_once_do_not_lose_one(lab: Lab) -> None:
    stale = await lab.bundle_body("2")
    await lab.http.post("/v1/bundles", json=await lab.bundle_body("1"))
    problem(await lab.http.post("/v1/bundles", json=stale), 409, "ConflictError")
    fresh = await lab.bundle_body("2")
    assert (await lab.http.post("/v1/bundles", json=fresh)).status_code == 200
    assert len((await lab.http.get("/v1/bundles")).json()["bundles"]) == 2


async def test_a_release_that_names_another_manifest_is_refused(lab: Lab) -> None:
    body = await lab.bundle_body("1")
    other = await lab.bundle_body("2")
    mixed = {"manifest": body["manifest"], "release": other["release"]}
    message = problem(await lab.http.post("/v1/bundles", json=mixed), 400, "RefusedError")
    assert message == f"the signed release metadata does not name {PATH}"


async def test_a_tampered_release_is_refused(lab: Lab) -> None:
    import base64

    body = await lab.bundle_body()
    raw = json.loads(base64.b64decode(body["release"]))
    raw["signed"]["targets"][PATH]["custom"]["release"] = 7
    body["release"] = base64.b64encode(json.dumps(raw).encode()).decode()
    problem(await lab.http.post("/v1/bundles", json=body), 400, "RefusedError")
    assert (await lab.http.get("/v1/bundles")).json() == {"bundles": []}


async def test_a_crash_between_signing_and_the_database_is_mended(lab: Lab) -> None:
    body = await lab.bundle_body()
    await lab.http.post("/v1/bundles", json=body)

    def forget() -> None:
        with lab.manager.store.begin() as connection:
            connection.execute(bundles.delete())

    forget()
    assert restore_bundle_rows(lab.manager.services) == 1
    forget()
    assert (await lab.http.post("/v1/bundles", json=body)).json()["changed"] is False
    assert len((await lab.http.get("/v1/bundles")).json()["bundles"]) == 1


async def test_pieces_are_asked_for_and_stored(lab: Lab) -> None:
    data = b"piece"
    digest = sha256(data).hexdigest()
    body = {"digests": [digest]}
    assert (await lab.http.post("/v1/pieces/missing", json=body)).json() == {"missing": [digest]}
    assert (await lab.http.put(f"/v1/pieces/{digest}", content=data)).status_code == 204
    assert (await lab.http.put(f"/v1/pieces/{digest}", content=data)).status_code == 204
    assert (await lab.http.post("/v1/pieces/missing", json=body)).json() == {"missing": []}


async def test_a_piece_that_is_not_what_it_says_is_refused(lab: Lab) -> None:
    digest = sha256(b"piece").hexdigest()
    response = await lab.http.put(f"/v1/pieces/{digest}", content=b"other")
    assert response.status_code == 400
    assert lab.manager.artifacts.get(digest) is None
    problem(await lab.http.put("/v1/pieces/..%2fx", content=b""), 404, "NotFoundError")
    problem(await lab.http.put("/v1/pieces/zz", content=b""), 422, "RequestError")
    large = await lab.http.put(f"/v1/pieces/{digest}", content=b"x" * (1024 * 1024 + 1))
    assert "more than 1048576 bytes" in problem(large, 422, "RequestError")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("GET", "/v1/nothing", None, 404, "GET /v1/nothing is not part of this API"),
        ("DELETE", "/v1/status", None, 405, "DELETE /v1/status is not part of this API"),
        ("POST", "/v1/pieces/missing", b"{", 422, "the request is not understood"),
        ("POST", "/v1/pieces/missing", b'{"digests": ["x"]}', 422, "digests.0"),
        ("POST", "/v1/pieces/missing", b'{"digests": [], "more": 1}', 422, "more"),
        ("POST", "/v1/bundles", b'{"manifest": "!", "release": ""}', 422, "is not base64"),
        ("POST", "/v1/bundles", b'{"manifest": "", "release": ""}', 400, ""),
        ("GET", "/v1/devices?limit=0", None, 422, "query.limit"),
    ],
)
async def test_what_cannot_be_understood_is_told(
    lab: Lab, method: str, path: str, body: bytes | None, status: int, text: str
) -> None:
    headers = {"content-type": "application/json"} if body is not None else {}
    response = await lab.http.request(method, path, content=body, headers=headers)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "message"}
    assert text in response.json()["message"]


async def test_a_body_without_end_is_cut_off(lab: Lab) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 65536

    response = await lab.http.post(
        "/v1/bundles", content=endless(), headers={"content-type": "application/json"}
    )
    assert "the body has more than" in problem(response, 413, "RequestError")


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}]
)
async def test_a_web_page_from_elsewhere_gets_nothing(lab: Lab, headers: dict[str, str]) -> None:
    response = await lab.http.get("/v1/status", headers=headers)
    assert "is not this machine" in problem(response, 403, "RequestError")


async def test_the_api_describes_itself(lab: Lab) -> None:
    paths = (await lab.http.get("/openapi.json")).json()["paths"]
    assert {"/v1/status", "/v1/devices", "/v1/bundles", "/v1/rollouts"} <= set(paths)


async def test_a_bug_says_nothing_about_our_inside(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise KeyError("secret")

    monkeypatch.setattr(lab.manager.store, "read", broken)
    message = problem(await lab.http.get("/v1/devices"), 500, "ServerError")
    assert message == "the fleet manager failed: its log says why"
