"""A signed fleet and a device that trusts it, for tests that stand between the two."""

from pathlib import Path

import pytest

from tests.support.signed_fleet import Reader, SignedFleet


@pytest.fixture
def fleet(tmp_path: Path) -> SignedFleet:
    return SignedFleet(tmp_path / "fleet")


@pytest.fixture
def device(fleet: SignedFleet) -> Reader:
    return Reader(fleet.root)
