"""What the supervisor may say about a version beside the active one."""

from typing import Any

import pytest

from agent.errors import DeviceError
from agent.runtime.routing import Role, Share
from agent.serving.control import share_from

SAID = {
    "manifest_sha256": "a" * 64,
    "role": "arm",
    "traffic_bp": 500,
    "routing_key": "camera",
    "salt": "r-1",
}


def test_a_sharing_is_read() -> None:
    assert share_from(None) is None
    assert share_from(SAID) == Share("a" * 64, Role.ARM, 500, "camera", "r-1")
    assert share_from({"manifest_sha256": "a", "role": "standby"}) == Share("a", Role.STANDBY)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([], "must be null or say"),
        ({**SAID, "percent": 1}, "must be null or say"),
        ({**SAID, "role": "canary"}, "names no version or no role"),
        ({**SAID, "role": None}, "names no version or no role"),
        ({**SAID, "role": ["arm"]}, "names no version or no role"),
        ({**SAID, "salt": 1}, "names no version or no role"),
        ({**SAID, "traffic_bp": True}, "whole number"),
        ({**SAID, "traffic_bp": 1.5}, "whole number"),
        ({**SAID, "traffic_bp": 10_001}, "from 0 to 10000"),
        ({**SAID, "traffic_bp": -1}, "from 0 to 10000"),
    ],
)
def test_anything_else_is_refused(said: Any, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        share_from(said)
