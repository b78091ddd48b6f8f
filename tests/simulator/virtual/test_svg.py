"""Plots: to scale, in words as well, and well-formed whatever the labels are."""

import re
from xml.etree import ElementTree

import pytest

from simulator.virtual.svg import Bar, bars, curves, sheet

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*parts: object) -> ElementTree.Element:
    return ElementTree.fromstring(sheet("a <title> & 'more'", "said", parts))


def test_bars_are_to_scale_and_stay_in_the_field():
    rows = [Bar("half", 0.5, 0.4, 0.6, "50 %"), Bar("all & more", 1.0, 0.9, 1.4, "100 %")]
    figure = drawn(bars("shares", rows, 1.0))
    half, full = (float(one.get("width")) for one in list(figure.iter(f"{SVG}rect"))[1:])
    assert half == pytest.approx(full / 2)
    whisker = list(figure.iter(f"{SVG}line"))[1]
    field_end = float(list(figure.iter(f"{SVG}rect"))[2].get("x")) + full
    assert float(whisker.get("x2")) == pytest.approx(field_end)
    said = [text.text for text in figure.iter(f"{SVG}text")]
    assert {"half", "50 %", "all & more", "100 %", "shares"} <= set(said)


def test_nothing_can_be_drawn_of_no_rows():
    assert drawn(bars("none", [], 0.0)) is not None


def test_a_curve_goes_up_in_steps():
    points = [(0.0, 0.0), (5.0, 0.5), (10.0, 1.0)]
    figure = drawn(curves("found", {"rule": points, "nothing": []}, ("minutes", "share")))
    path = next(one.get("d") for one in figure.iter(f"{SVG}path"))
    numbers = [float(number) for number in re.findall(r"[\d.]+", path)]
    (x0, y0), steps = numbers[:2], numbers[2:]
    across, down = steps[::2], steps[1::2]
    assert across == sorted(across)
    assert down == sorted(down, reverse=True)
    assert across[0] - x0 == pytest.approx(across[1] - across[0], abs=0.2)
    assert y0 > down[0] > down[1]
