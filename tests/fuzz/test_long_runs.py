"""The command for longer runs: what it reads out of libFuzzer's words, and what it says when it cannot run."""

import importlib.util

import pytest

from tests.fuzz.__main__ import Outcome, main, outcome, seeds, table

SAID = """
#2	INITED cov: 148 ft: 148 corp: 1/2182b exec/s: 0 rss: 146Mb
#220830	DONE   cov: 272 ft: 891 corp: 83/70Kb lim: 4096 exec/s: 24536 rss: 149Mb
Done 220830 runs in 9 second(s)
stat::number_of_executed_units: 220830
stat::average_exec_per_sec:     24536
stat::new_units_added:          97
stat::slowest_unit_time_sec:    0
stat::peak_rss_mb:              149
"""
FOUND = Outcome("manifest", 220_830, 8, 272, 149, ())


def test_what_libfuzzer_says_is_read() -> None:
    assert outcome("manifest", SAID, 8, ()) == FOUND
    assert outcome("manifest", "died at once", 8, ("x",)) == Outcome("manifest", 0, 8, 0, 0, ("x",))


def test_the_table_has_a_row_for_each_target() -> None:
    assert table([FOUND]).splitlines()[-1] == "| `manifest` | 8 s | 220,830 | 272 | 149 MB | 0 |"


def test_every_target_has_seeds() -> None:
    assert all(len(valid) > 0 for valid in seeds().values())
    assert {"pack", "manifest", "pieces", "enrol", "directive"} <= set(seeds())


def test_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert main(["manifest"]) == 2
    assert "pip install -e '.[fuzz]'" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    assert main(["manifesto"]) == 2
    assert "no target manifesto; there are: pack, " in capsys.readouterr().err
