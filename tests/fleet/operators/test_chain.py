"""The chain of the audit log: whatever is done to it afterwards is found, but for a tail that nobody else knows of."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import RefusedError, RequestError
from fleet.operators.chain import START, Entry, Head, check_chain, follows, parse_entry, parse_head

FEW = settings(max_examples=20)
TEXT = st.text(max_size=30)


def entry(number: int = 1, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "at_ms": 1000 * number, "token_id": "1", "name": "ada", "role": "operator",
        "operation": "rollout pause", "object": f"r{number}", "outcome": "done", "reason": "",
    }  # fmt: skip
    return Entry(**{**values, **changes})


def chain(*entries: Entry) -> list[Entry]:
    made: list[Entry] = []
    for one in entries:
        made.append(follows(made[-1].head if made else START, one))
    return made


ENTRIES = st.lists(
    st.builds(entry, st.integers(1, 99), name=TEXT, object=TEXT, reason=TEXT),
    min_size=1,
    max_size=8,
)


def test_the_digest_is_the_one_in_the_documentation() -> None:
    """Anybody can compute it without this program."""
    import hashlib

    [one] = chain(entry(reason="ü"))
    text = (
        '{"at_ms":1000,"name":"ada","number":1,"object":"r1","operation":"rollout pause","outcome":"done",'
        '"reason":"ü","role":"operator","token_id":"1"}'
    )
    assert one.sha256 == hashlib.sha256(bytes(32) + text.encode()).hexdigest()


@FEW
@given(ENTRIES)
def test_a_chain_as_it_was_written_is_whole(entries: list[Entry]) -> None:
    made = chain(*entries)
    assert check_chain(made) == made[-1].head
    assert check_chain(made, [one.head for one in made]) == made[-1].head
    assert check_chain([parse_entry(one.to_json()) for one in made]) == made[-1].head


@FEW
@given(ENTRIES, st.data())
def test_an_altered_entry_is_found(entries: list[Entry], data: st.DataObject) -> None:
    made = chain(*entries)
    at = data.draw(st.integers(0, len(made) - 1))
    key = data.draw(st.sampled_from(["at_ms", "name", "role", "object", "outcome", "reason"]))
    value = data.draw(st.integers(0, 10**6) if key == "at_ms" else TEXT)
    if getattr(made[at], key) == value:
        return
    made[at] = dataclasses.replace(made[at], **{key: value})
    with pytest.raises(RefusedError, match=f"entry {at + 1} of the audit log was altered"):
        check_chain(made)


@FEW
@given(ENTRIES, st.data())
def test_an_entry_altered_with_its_digest_is_found_at_the_next(
    entries: list[Entry], data: st.DataObject
) -> None:
    made = chain(*entries, entry())
    at = data.draw(st.integers(0, len(made) - 2))
    forged = dataclasses.replace(made[at], reason=made[at].reason + "!")
    made[at] = dataclasses.replace(forged, sha256=forged.expected_sha256())
    with pytest.raises(RefusedError, match=f"entry {at + 2} .* does not follow entry {at + 1}"):
        check_chain(made)


@FEW
@given(ENTRIES, st.data())
def test_a_removed_entry_is_found(entries: list[Entry], data: st.DataObject) -> None:
    made = chain(*entries, entry())
    del made[data.draw(st.integers(0, len(made) - 2))]
    with pytest.raises(RefusedError, match="entries are missing"):
        check_chain(made)


@FEW
@given(ENTRIES, st.data())
def test_moved_entries_are_found(entries: list[Entry], data: st.DataObject) -> None:
    made = chain(*entries, entry())
    at = data.draw(st.integers(0, len(made) - 2))
    made[at], made[at + 1] = made[at + 1], made[at]
    with pytest.raises(RefusedError, match="audit log"):
        check_chain(made)


@FEW
@given(ENTRIES, st.data())
def test_a_tail_that_was_cut_is_found_by_who_knows_a_later_head(
    entries: list[Entry], data: st.DataObject
) -> None:
    made = chain(*entries, entry())
    left = data.draw(st.integers(0, len(made) - 1))
    assert check_chain(made[:left]).number == left  # alone, it cannot tell
    with pytest.raises(RefusedError, match=f"the newest {len(made) - left} were cut off"):
        check_chain(made[:left], [made[-1].head])


@FEW
@given(ENTRIES)
def test_a_log_written_anew_is_found_by_who_knows_a_head(entries: list[Entry]) -> None:
    made, anew = chain(*entries), chain(*(dataclasses.replace(one, at_ms=7) for one in entries))
    if made == anew:
        return
    assert check_chain(anew)
    with pytest.raises(RefusedError, match=f"entry {len(made)} .* is not the one that was written"):
        check_chain(anew, [made[-1].head])


def test_texts_are_cut_and_printable() -> None:
    [one] = chain(entry(object="x" * 999, reason="a\x1b[31m\ud800\n" + "y" * 2000))
    assert (len(one.object), len(one.reason)) == (256, 1000)
    assert one.reason.isprintable()
    assert one.object.endswith("…")
    one.reason.encode()


@pytest.mark.parametrize(
    "text", ["", "1", "x:" + "0" * 64, "1:zz", "-1:" + "0" * 64, "1:" + "A" * 64]
)
def test_what_is_no_head(text: str) -> None:
    with pytest.raises(RequestError):
        parse_head(text)


def test_a_head_reads_back_as_it_was() -> None:
    [one] = chain(entry())
    assert parse_head(str(one.head)) == one.head
    assert parse_head(str(START)) == Head(0, "0" * 64)


@pytest.mark.parametrize(
    "change", [{"number": "1"}, {"at_ms": True}, {"more": 1}, {"previous": "x"}, {"name": None}]
)
def test_what_is_no_entry(change: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        parse_entry({**chain(entry())[0].to_json(), **change})
