"""A plan that would bring devices an older release says so, unless that is what was asked for."""

import pytest

from agent.trust import BundleRelease, DeviceFacts, bundle_path
from fleet.rollout.fitness import Candidate
from fleet.rollout.going_back import older_than_served
from fleet.rollout.spec import RolloutSpec


def release(number: int, model: str = "m") -> BundleRelease:
    return BundleRelease(
        path=bundle_path("cam", model, str(number)),
        sha256=f"{number:x}" * 64,
        length=1,
        model=model,
        version=str(number),
        device_class="cam",
        release=number,
    )


RELEASES = {
    entry.path: entry for entry in (release(1), release(2), release(3), release(4, "other"))
}


def serving(*numbers: int) -> list[Candidate]:
    return [
        Candidate(
            DeviceFacts(f"d{place}", "cam", "x86_64"),
            0.0,
            serves=f"{number:x}" * 64 if number else "",
        )
        for place, number in enumerate(numbers)
    ]


@pytest.mark.parametrize(
    ("serves", "older", "said"),
    [
        ((0, 1, 1), False, ""),
        (
            (1, 3, 2),
            False,
            "2 devices serve a newer release than bundles/cam/m-1, up to bundles/cam/m-3 (d1, d2)",
        ),
        ((1, 3), False, "1 device serves"),
        ((3, 3, 3, 3), False, "(d0, d1, d2, ...)"),
        ((3, 3), True, ""),
        ((4, 0xA), False, ""),
    ],
)
def test_older_than_served(serves: tuple[int, ...], older: bool, said: str) -> None:
    spec = RolloutSpec("m", "bundles/cam/m-1", older=older)
    found = older_than_served(spec, release(1), RELEASES, serving(*serves))
    assert len(found) == bool(said)
    assert all(said in text for text in found)
