"""HTTP: what is published of the roles that people sign, and what is no next version of one."""

import base64
import json
import time

import pytest
from tuf.api.metadata import Metadata

from fleet.repository.keys import key_path, load_key
from fleet.repository.request import next_version
from fleet.repository.roles import to_bytes
from tests.fleet.api.conftest import Lab


def body_of(raw: bytes) -> dict[str, str]:
    return {"metadata": base64.b64encode(raw).decode()}


async def test_a_role_is_read_signed_and_taken_over(lab: Lab) -> None:
    found = (await lab.http.get("/v1/repository/roles")).json()
    assert found["versions"]["targets"] == 1
    assert [root["signed"]["version"] for root in found["roots"]] == [1]
    raw = (await lab.http.get("/v1/repository/roles/targets")).content
    following = next_version("targets", Metadata.from_bytes(raw), time.time())
    following.sign(load_key(key_path(lab.manager.home.path, "targets")))
    signed = body_of(to_bytes(following))
    before = lab.manager.feed.version
    done = (await lab.http.post("/v1/repository/roles/targets", json=signed)).json()
    assert done == {"role": "targets", "version": 2, "changed": True}
    assert lab.manager.feed.version > before, "devices are told at once"
    again = (await lab.http.post("/v1/repository/roles/targets", json=signed)).json()
    assert again == {"role": "targets", "version": 2, "changed": False}


@pytest.mark.parametrize(
    ("role", "body", "status", "problem"),
    [
        ("timestamp", body_of(b"{}"), 422, "no role that people sign"),
        ("targets", {"metadata": "!"}, 422, "metadata is not base64"),
        ("targets", {"metadata": "", "companions": {"x": "!"}}, 422, "companion x is not base64"),
        ("targets", {}, 422, "metadata"),
        ("targets", body_of(b"{}"), 400, "cannot be read"),
        ("root", body_of(b"[" * 2000), 400, "cannot be read"),
        ("release", body_of(b"{}"), 400, "cannot be read"),
    ],
)
async def test_what_is_no_next_version(
    lab: Lab, role: str, body: dict[str, str], status: int, problem: str
) -> None:
    answer = await lab.http.post(f"/v1/repository/roles/{role}", json=body)
    assert answer.status_code == status, answer.text
    assert problem in json.dumps(answer.json())


async def test_the_release_role_of_a_class(lab: Lab) -> None:
    answer = await lab.http.get("/v1/repository/release", params={"class": "edge"})
    assert answer.headers["x-release-version"] == "1"
