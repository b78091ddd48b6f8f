"""A receiver for all tests, and an outbox in a database of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.store.engine import Store, open_store
from tests.support.receiver import Receiver, receiving


@pytest.fixture(scope="session")
def listening() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def receiver(listening: Receiver) -> Receiver:
    listening.reset()
    return listening


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = open_store(tmp_path / "fleet.db")
    yield one
    one.close()
