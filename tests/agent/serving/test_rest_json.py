"""orjson and the standard library together read and write what the latter does alone."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agent.serving.rest.json_text import dump, load, values_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
ARRAYS = st.sampled_from(
    [np.bool_, np.int8, np.uint8, np.int32, np.int64, np.uint64, np.float16, np.float32, np.float64]
).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0)))


def same(one: object, other: object) -> bool:
    """Equal, of the same kinds, NaN like NaN."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@given(VALUES, st.booleans())
def test_it_reads_what_the_standard_library_writes(value: object, escape: bool) -> None:
    text = json.dumps(value, ensure_ascii=escape).encode("utf-8", "surrogatepass")
    if escape or "\\ud" not in json.dumps(value):
        assert same(load(text), json.loads(text))


@pytest.mark.parametrize("text", ["[NaN, Infinity, -Infinity]", '"\\ud800"', "[1e999]"])
def test_what_orjson_refuses_is_read_all_the_same(text: str) -> None:
    assert same(load(text.encode()), json.loads(text))
    assert same(load(text.encode("utf-16")), json.loads(text))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\xfd", b"[1,]", b"tru"])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
        load(text)


def test_what_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(RecursionError):
        load(b"[" * 100_000 + b"]" * 100_000)


@given(ARRAYS)
def test_an_array_is_read_back_bit_for_bit(array: np.ndarray) -> None:
    text = dump({"data": values_of(array)})
    back = np.array(json.loads(text)["data"], array.dtype)
    assert np.array_equal(back, array.reshape(-1), equal_nan=array.dtype.kind == "f")


def test_numbers_have_the_fewest_digits_that_mean_them() -> None:
    assert dump({"data": values_of(np.array([0.1, 2], np.float32))}) == b'{"data":[0.1,2.0]}'
    assert dump({"data": values_of(np.array([0.1], np.float64))}) == b'{"data":[0.1]}'


def test_numbers_that_are_not_finite_are_never_null() -> None:
    broken = np.array([math.nan, math.inf, -math.inf, 1], np.float32)
    good = np.array([[1], [2]], np.int8)
    text = dump({"one": values_of(broken), "two": [{"data": values_of(good)}], "id": "ü"})
    assert text == '{"one":[NaN,Infinity,-Infinity,1.0],"two":[{"data":[1,2]}],"id":"ü"}'.encode()


def test_a_slice_of_an_array_is_written_in_its_order() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    assert dump({"data": values_of(array)}) == b'{"data":[0.0,2.0,4.0,6.0,8.0,10.0]}'
