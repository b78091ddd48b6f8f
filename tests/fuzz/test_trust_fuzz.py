"""Packs, signed metadata, directives, releases and emergencies: whatever comes is read, or refused by our own error."""

import gzip
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from protos import metadata_pb2
from tests.fuzz.holes import check_accepted
from tests.fuzz.mutations import bytes_like, examples, json_like
from tests.fuzz.trust_targets import ROLES, TrustBed


@given(data=st.data())
def test_a_pack_whose_bytes_were_changed(trust: TrustBed, data: st.DataObject) -> None:
    trust.feed_pack(data.draw(bytes_like([trust.pack]) | st.binary(max_size=300)))


@given(data=st.data())
def test_a_pack_that_was_changed_before_it_was_packed(trust: TrustBed, data: st.DataObject) -> None:
    trust.feed_pack_inside(data.draw(bytes_like([gzip.decompress(trust.pack)])))


names = st.sampled_from(
    ["timestamp.json", "2.snapshot.json", "3.snapshot.json", "2.rollout.json", "2.root.json", "root.json",
     "../x.json", "/etc/passwd", "9999999999.snapshot.json", "timestamp.json\n", "emergency.json", ""]
)  # fmt: skip


@given(data=st.data())
def test_a_pack_of_other_files(trust: TrustBed, data: st.DataObject) -> None:
    """The right message with the wrong names and contents; what a broker can make of packs that it has seen."""
    pack = metadata_pb2.MetadataPack.FromString(gzip.decompress(trust.pack))
    seen = [file.content for file in pack.files]
    contents = st.sampled_from(seen) | bytes_like(seen, most=2) | st.binary(max_size=30)
    for file in pack.files:
        match data.draw(st.integers(0, 3)):
            case 0:
                file.name = data.draw(names)
            case 1:
                file.content = data.draw(contents)
    for _ in range(data.draw(st.integers(0, 2))):
        pack.files.add(name=data.draw(names), content=data.draw(contents))
    trust.feed_pack_inside(pack.SerializeToString())


@examples(140)
@given(data=st.data())
def test_what_a_stolen_key_signs(trust: TrustBed, data: st.DataObject) -> None:
    """Every role's metadata with any part made worse, signed by the role's own key."""
    number = data.draw(st.integers(0, len(ROLES) - 1))
    signed = data.draw(json_like([trust.signed_seed(ROLES[number])], most=2))
    trust.feed_signed(bytes((number,)) + signed)


def custom(value: Any) -> st.SearchStrategy[bytes]:
    return json_like([value]) | bytes_like([json.dumps(value).encode()], most=3)


@examples(150)
@given(data=st.data())
def test_a_directive_of_any_form(trust: TrustBed, data: st.DataObject) -> None:
    trust.feed_directive(data.draw(custom(trust.directive.to_json())))


@examples(100)
@given(data=st.data())
def test_a_release_of_any_form(trust: TrustBed, data: st.DataObject) -> None:
    trust.feed_release(data.draw(custom(trust.release.to_json())))


@examples(100)
@given(data=st.data())
def test_an_emergency_of_any_form(trust: TrustBed, data: st.DataObject) -> None:
    trust.feed_emergency(data.draw(custom(trust.emergency_seed)))


def test_what_is_fuzzed_is_valid_before_it_is_changed(trust: TrustBed) -> None:
    for target in trust.targets():
        check_accepted(target)
