"""Raw bytes and arrays: round trips for every data type, refusals for what does not fit."""

from typing import Any

import numpy as np
import pytest

from agent.runtime.dtypes import NUMPY_OF, dtype_of, dtype_of_onnx, from_raw, to_raw
from agent.runtime.errors import InputContractError

NUMERIC = [name for name in NUMPY_OF if name != "BYTES"]


@pytest.mark.parametrize("dtype", NUMERIC)
def test_numbers_come_back_as_they_were(dtype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype=NUMPY_OF[dtype])
    back = from_raw(to_raw(array), dtype, (2, 3), "x")
    assert dtype_of(back) == dtype
    assert np.array_equal(back, array)


def test_text_comes_back_as_it_was() -> None:
    array = np.array(["", "grün", "a\0b"], dtype=object)
    back = from_raw(to_raw(array), "BYTES", (3,), "x")
    assert list(back) == ["", "grün", "a\0b"]
    assert dtype_of(back) == "BYTES"


@pytest.mark.parametrize(
    ("raw", "dtype", "shape", "said"),
    [
        (b"\0" * 12, "FP32", (4,), "takes 16 bytes, got 12"),
        (b"", "FP32", (2**40, 2**40), "got 0"),
        (b"", "FP32", (-1,), "negative"),
        (b"", "BF16", (0,), "'BF16' is unknown"),
        (b"\5\0\0\0ab", "BYTES", (1,), "exactly 1 length-prefixed"),
        (b"\1\0\0\0a\1\0\0\0b", "BYTES", (1,), "exactly 1 length-prefixed"),
        (b"\1\0", "BYTES", (1,), "exactly 1 length-prefixed"),
        (b"", "BYTES", (2**50,), "length-prefixed"),
        (b"\1\0\0\0\xff", "BYTES", (1,), "element 0 is not UTF-8"),
    ],
)
def test_bytes_that_are_not_the_tensor_are_refused(
    raw: bytes, dtype: str, shape: Any, said: str
) -> None:
    with pytest.raises(InputContractError, match="tensor 'pixels'") as refused:
        from_raw(raw, dtype, shape, "pixels")
    assert said in str(refused.value)


def test_onnx_types_have_the_protocols_names() -> None:
    assert dtype_of_onnx("tensor(float)") == "FP32"
    assert dtype_of_onnx("tensor(string)") == "BYTES"
    assert dtype_of_onnx("seq(map(int64,tensor(float)))") is None
    assert dtype_of_onnx("tensor(bfloat16)") is None
