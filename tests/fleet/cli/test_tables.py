"""Tables at any width: columns go before words break, and what is shown is never taken for markup."""

from io import StringIO

import pytest
from rich.console import Console

from fleet.cli import output

COLUMNS = ("when", "bundle", "outcome", "reason")
ROW = (
    "11-24 12:02:52",
    "bundles/edge/digits-2.0.0",
    "committed",
    "the error rate is 2.63 % (3 of 114 requests on 4 devices); the limit is 1 %",
)


def table(monkeypatch: pytest.MonkeyPatch, width: int, row: tuple[str, ...] = ROW) -> str:
    console = Console(file=StringIO(), width=width)
    monkeypatch.setattr(output, "console", console)
    output.print_table("Steps", COLUMNS, [row], drop=("bundle", "outcome"), whole=("when",))
    stream = console.file
    assert isinstance(stream, StringIO)
    return stream.getvalue()


@pytest.mark.parametrize("width", range(48, 180, 4))
def test_no_line_is_too_long_and_no_word_is_broken(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    shown = table(monkeypatch, width)
    assert all(len(line) <= width for line in shown.splitlines())
    words = {word for line in shown.splitlines() for word in line.split()}
    assert words >= set(ROW[3].split())
    assert ROW[0] in shown
    assert (ROW[1] in shown) is ("no room for: bundle" not in shown)


def test_the_first_to_go_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no room" not in table(monkeypatch, 100)
    assert "(no room for: bundle)" in table(monkeypatch, 80)
    assert "(no room for: bundle, outcome)" in table(monkeypatch, 50)


def test_a_table_that_cannot_fit_still_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(len(line) <= 30 for line in table(monkeypatch, 30).splitlines())


def test_what_a_device_says_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = table(monkeypatch, 160, (*ROW[:3], "[red]sensor[/] [/closed] [bold]"))
    assert "[red]sensor[/] [/closed] [bold]" in shown
