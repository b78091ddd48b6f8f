"""What ``fleet device show`` says about ground truth in a window."""

import pytest

from fleet.cli.device import _feedback


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((0, 0, 0.0, 0), ""),
        ((4, 3, 0.0, 0), "3 of 4 right"),
        ((4, 0, 0.0, 0), "0 of 4 right"),
        ((4, 1, 2.0, 0), "off by 0.5 on average of 4"),
        ((0, 0, 0.0, 2), "2 unknown"),
        ((1, 1, 0.0, 2), "1 of 1 right, 2 unknown"),
    ],
)
def test_feedback_in_words(counts, said):
    names = ("feedback_count", "feedback_correct", "feedback_abs_error_sum", "feedback_unknown")
    assert _feedback(dict(zip(names, counts, strict=True))) == said
