"""The demo's three versions are what they claim: weaker, good, and broken in a way that only its contract shows."""

from pathlib import Path

import pytest

from fleet.artifacts.build import build_bundle
from fleet.demo.digits import DigitsSplit, Variant, load_split, write_project
from fleet.demo.story import on_test_images


@pytest.fixture(scope="module")
def split() -> DigitsSplit:
    return load_split()


@pytest.fixture(scope="module")
def measured(
    split: DigitsSplit, tmp_path_factory: pytest.TempPathFactory
) -> dict[Variant, tuple[float, float]]:
    """Accuracy and share of contract violations of each variant's bundle, built as a user builds it."""
    folder = tmp_path_factory.mktemp("digits")
    found = {}
    for number, variant in enumerate(Variant):
        project = write_project(folder / variant.name, f"{number}.0.0", variant, split)
        built = build_bundle(project, folder / f"{variant.name}-bundle", now_s=1)
        found[variant] = on_test_images(Path(built.path), split)
    return found


def test_the_better_version_is_better(measured: dict[Variant, tuple[float, float]]) -> None:
    assert 0.7 < measured[Variant.FEW_ROWS][0] < measured[Variant.ALL_ROWS][0] - 0.05
    assert measured[Variant.ALL_ROWS][0] > 0.95


def test_good_versions_keep_their_contract_on_images_nobody_trained_on(
    measured: dict[Variant, tuple[float, float]],
) -> None:
    assert measured[Variant.FEW_ROWS][1] < 0.005
    assert measured[Variant.ALL_ROWS][1] < 0.005


def test_the_forgotten_scaling_passes_its_golden_case_and_breaks_its_contract(
    measured: dict[Variant, tuple[float, float]],
) -> None:
    accuracy, violations = measured[Variant.FORGOTTEN_SCALING]
    assert accuracy < measured[Variant.ALL_ROWS][0] - 0.1
    assert violations > 0.95
