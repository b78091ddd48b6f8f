"""What a rollout costs against the size of its fleet: two small fleets, and the page that is made of them."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from benchmarks.fleet_size import measure
from benchmarks.fleet_size_report import Cost, Run, markdown, plot

FIGURES = Cost(
    devices=100, canaries=10, compared=100, open_s=0.02, tick_s=0.005, first_look_s=0.05,
    look_s=0.015, decide_s=0.01, sign_s=0.003, next_open_s=0.03, pack_bytes=1001,
    idle_bytes=90_000_000, peak_bytes=97_000_000,
)  # fmt: skip
GROWN = replace(FIGURES, devices=1_000_000, tick_s=1.5, look_s=1.4, open_s=30.0)
RUN = Run((FIGURES, GROWN), (1.25, 6.0))


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    return [measure(size, tmp_path_factory.mktemp("fleet")) for size in (100, 300)]


def test_a_stage_change_is_as_many_bytes_for_three_times_the_fleet(costs):
    small, large = costs
    assert (small.devices, large.devices) == (100, 300)
    assert 0 < small.canaries < large.canaries
    assert large.pack_bytes == pytest.approx(small.pack_bytes, abs=32)  # compressed signatures


def test_copied_devices_are_compared_like_those_that_reported(costs):
    assert [one.compared for one in costs] == [100, 300]


def test_every_cost_was_measured(costs):
    spent = ("open_s", "tick_s", "first_look_s", "look_s", "decide_s", "sign_s", "next_open_s")
    assert all(getattr(one, name) > 0 for one in costs for name in spent)
    assert all(one.peak_bytes >= one.idle_bytes > 0 for one in costs)


def test_the_table_has_a_row_for_each_size():
    rows = [line for line in markdown(RUN).splitlines() if line.startswith("| 1")]
    assert rows == [
        "| 100 | 10 | 100 | 1,001 | 3 ms | 10 ms | 5 ms | 50 ms | 15 ms | 20 ms | 30 ms "
        "| 90 MB (97 MB) |",
        "| 1,000,000 | 10 | 100 | 1,001 | 3 ms | 10 ms | 1.5 s | 50 ms | 1.4 s | 30.0 s | 30 ms "
        "| 90 MB (97 MB) |",
    ]


def test_what_grows_is_told_by_the_largest_fleet():
    text = markdown(RUN)
    assert "a tick costs 1.5 µs a device in the largest fleet" in text
    assert "30.0 µs. A look itself" in text
    assert "takes 10 ms, 0 ms:" in text


def test_the_plot_has_a_line_for_each_cost_and_is_no_higher_where_nothing_grew():
    root = ElementTree.fromstring(plot(RUN))
    lines = [one.get("points").split() for one in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points) for points in lines] == [2] * 5
    (signing_at_100, signing_at_most), *_ = lines
    assert signing_at_100.split(",")[1] == signing_at_most.split(",")[1]
    assert float(lines[4][1].split(",")[1]) < float(
        lines[4][0].split(",")[1]
    )  # opening a ring grew
