"""REST bodies and gRPC messages of applications; HTTP/2 itself: ``tests/agent/serving/http2/test_fuzz.py``."""

import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.holes import check_accepted
from tests.fuzz.mutations import bytes_like, examples, json_like
from tests.fuzz.serving_targets import (
    BODIES,
    feed_body,
    feed_infer,
    feed_rest,
    rest_seed,
    serving_targets,
)

TARGETS = {target.name: target for target in serving_targets()}


@examples(250)
@given(json_like([rest_seed()]), st.sampled_from([0, 0, 0, 10, 65_535]))
def test_a_request_of_any_form(said: bytes, split: int) -> None:
    feed_rest(split.to_bytes(2, "big") + said)


@examples(100)
@given(bytes_like(TARGETS["rest"].seeds))
def test_a_request_whose_bytes_were_changed(data: bytes) -> None:
    feed_rest(data)


@examples(60)
@given(bytes_like(TARGETS["rest-body"].seeds))
def test_a_body_whose_bytes_were_changed(data: bytes) -> None:
    feed_body(data)


@examples(100)
@given(bytes_like(TARGETS["grpc-infer"].seeds))
def test_a_message_whose_bytes_were_changed(data: bytes) -> None:
    feed_infer(data)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_body_that_unpacks_to_one_byte_too_many(pack) -> None:
    number = b"\x01" if pack is gzip.compress else b"\x02"
    feed_body(number + b"\xff" + pack(bytes(BODIES.max_bytes)))
    feed_body(number + b"\xff" + pack(bytes(BODIES.max_bytes + 1)))


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_fuzzed_is_valid_before_it_is_changed(name: str) -> None:
    check_accepted(TARGETS[name])


def test_the_body_that_is_fuzzed_is_json() -> None:
    assert json.loads(TARGETS["rest"].seeds[0][2:]) == rest_seed()
