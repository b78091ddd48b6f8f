"""Speed limits as people write them: read strictly, and written back as they were."""

import pytest

from fleet.cli.speed_limits import limits_words, parse_limits
from fleet.errors import RequestError


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("", ()),
        ("0s:1%,4h:10%,1d:100%", ((0, 100), (14_400, 1000), (86_400, 10_000))),
        ("90s:0.5%", ((90, 50),)),
    ],
)
def test_what_is_read_is_written_the_same(text: str, limits: tuple[tuple[int, int], ...]) -> None:
    assert parse_limits(text) == limits
    assert limits_words(limits) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1h", "no AFTER:SHARE"),
        ("soon:1%", "no duration"),
        ("1h:0%", "no percentage"),
        ("1h:10%,2h:10%", "must grow"),
        ("2h:1%,1h:10%", "must grow"),
        (",".join(f"{n}s:{n}%" for n in range(1, 34)), "at most 32"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        parse_limits(text)
