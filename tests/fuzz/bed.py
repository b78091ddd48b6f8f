"""All targets at once, over folders of their own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.bundle_targets import PieceBed, manifest_target
from tests.fuzz.certificate_targets import certificate_targets
from tests.fuzz.enrol_targets import EnrolBed
from tests.fuzz.holes import Target
from tests.fuzz.serving_targets import serving_targets
from tests.fuzz.trust_targets import TrustBed

__all__ = ["all_targets"]


@contextmanager
def all_targets(folder: Path) -> Iterator[Mapping[str, Target]]:
    """Every target by its name."""
    with EnrolBed(folder / "enrol") as enrol:
        targets = [
            *TrustBed(folder / "trust").targets(),
            manifest_target(),
            PieceBed(folder / "pieces").target(),
            enrol.target(),
            *certificate_targets(),
            *serving_targets(),
        ]
        yield {target.name: target for target in targets}
