"""The contract: what is refused on the way in, what is counted on the way out."""

import numpy as np
import pytest

from agent.bundle import TensorSpec
from agent.runtime.contract import check_inputs, check_outputs
from agent.runtime.dtypes import Array
from agent.runtime.errors import InputContractError

SPEC = TensorSpec("x", "FP32", (-1, 2), minimum=0.0, maximum=1.0)


def good() -> Array:
    return np.array([[0.0, 1.0]], dtype=np.float32)


def test_what_keeps_the_contract_passes() -> None:
    check_inputs([SPEC], {"x": good()})
    assert check_outputs([SPEC], {"x": good()}).violations == 0


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (good().astype(np.float64), "input 'x': expected data type FP32, got FP64"),
        (good()[0], "input 'x': expected shape [any, 2], got [2]"),
        (np.zeros((1, 3), np.float32), "input 'x': expected shape [any, 2], got [1, 3]"),
        (np.zeros((0, 2), np.float32), "input 'x': expected shape [any, 2], got [0, 2]"),
        (good() + 1, "input 'x': expected values from 0 to 1, got 1.0 to 2.0"),
        (good() * np.float32("nan"), "input 'x': expected values from 0 to 1, got nan to nan"),
    ],
)
def test_a_broken_input_is_named_with_what_was_expected(array: Array, said: str) -> None:
    with pytest.raises(InputContractError) as refused:
        check_inputs([SPEC], {"x": array})
    assert str(refused.value) == said


@pytest.mark.parametrize("names", [(), ("y",), ("x", "y")])
def test_missing_and_unexpected_inputs_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(InputContractError, match=r"expected the inputs \['x'\]"):
        check_inputs([SPEC], {name: good() for name in names})


def test_outputs_are_found_wrong_and_not_refused() -> None:
    free = TensorSpec("free", "FP32", (-1,))
    found = check_outputs([SPEC, free], {"x": good() + 5, "free": np.array([np.inf], np.float32)})
    assert (found.violations, found.non_finite) == (1, 1)
    assert found.problems == (
        "output 'x': expected values from 0 to 1, got 5.0 to 6.0",
        "output 'free': NaN or infinity",
    )


@pytest.mark.parametrize(
    ("dtype", "array", "ok"),
    [
        ("BYTES", np.array(["cat", "dog"], dtype=object), True),
        ("BYTES", np.array(["cat", "cow"], dtype=object), False),
        ("INT64", np.array([0, 1]), True),
        ("INT64", np.array([0, 2]), False),
        ("INT64", np.array([-1]), False),
        ("FP32", np.zeros(2, np.float32), True),
        ("FP32", np.zeros(3, np.float32), False),
    ],
)
def test_labels_name_the_classes(dtype: str, array: Array, ok: bool) -> None:
    spec = TensorSpec("label", dtype, (-1,), labels=("cat", "dog"))
    assert (check_outputs([spec], {"label": array}).violations == 0) is ok
