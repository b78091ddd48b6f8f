"""One running fleet manager for all worlds of these tests; each uses a device class of its own."""

from collections.abc import Iterator

import pytest

from tests.support.daemon import wait_until
from tests.support.fleet import FleetHost


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetHost]:
    host = FleetHost(tmp_path_factory.mktemp("worlds") / "home", name="worlds")
    host.init()
    host.start()
    try:
        wait_until((host.home / "run.json").exists, "fleet serve says where it listens")
        yield host
    finally:
        host.stop()
