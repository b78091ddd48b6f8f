"""What is fuzzed, made once: everything here is read only, or the same again after each example."""

from collections.abc import Iterator

import pytest

from tests.fuzz.bundle_targets import PieceBed
from tests.fuzz.enrol_targets import EnrolBed
from tests.fuzz.trust_targets import TrustBed


@pytest.fixture(scope="package")
def trust(tmp_path_factory: pytest.TempPathFactory) -> TrustBed:
    return TrustBed(tmp_path_factory.mktemp("trust"))


@pytest.fixture(scope="package")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> PieceBed:
    return PieceBed(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="package")
def enrol(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnrolBed]:
    with EnrolBed(tmp_path_factory.mktemp("enrol")) as bed:
        yield bed
