"""A signed fleet in a folder."""

from pathlib import Path

import pytest

from tests.support.signed_fleet import SignedFleet


@pytest.fixture
def fleet(tmp_path: Path) -> SignedFleet:
    return SignedFleet(tmp_path / "fleet")
