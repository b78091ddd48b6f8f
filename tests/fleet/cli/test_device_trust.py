"""What ``fleet device show`` says about the signed metadata of a device."""

from fleet.cli.device import _trust_rows

REFUSED = {
    "refusal_code": "rollback",
    "refusal": "older than what was accepted before",
    "refused_s": 1_800_000_000.0,
    "refused": 3,
    "refusing": True,
    "notices": ["blocked: bundles/cam/m-1 ... it stays"],
}


def test_nothing_is_said_where_nothing_was_refused() -> None:
    assert _trust_rows({}) == []


def test_the_code_and_the_words_are_said() -> None:
    first, second, notice = _trust_rows(REFUSED)
    assert first[0] == "signed metadata"
    assert str(first[1]).startswith("refusing since")
    assert "3 since its start" in str(first[1])
    assert second == ("refused: rollback", "older than what was accepted before")
    assert notice == ("notice", REFUSED["notices"][0])


def test_what_is_over_is_said_to_be() -> None:
    first = _trust_rows({**REFUSED, "refusing": False})[0]
    assert str(first[1]).startswith("accepted again; last refused")
