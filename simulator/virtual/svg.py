"""Two kinds of plots as SVG text, to be put into a page or a file: bars with whiskers, and curves.

Rules kept here: values in, text out; what is drawn is also said in words (a title and a label at
each bar); nothing is fetched and nothing runs in the reader's browser.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

__all__ = ["COLOURS", "Bar", "bars", "curves", "sheet"]

WIDTH: Final = 820
LEFT: Final = 220
RIGHT: Final = 110
BAR: Final = 16
GAP: Final = 6
HEIGHT: Final = 220  # of the field of curves
COLOURS: Final = (
    "#1f6feb", "#d29922", "#a371f7", "#2da44e", "#cf222e", "#8b949e",
    "#e3b341", "#d2a8ff", "#7ee787", "#ff7b72", "#c9d1d9",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its value, the interval around it, and what is written behind it."""

    label: str
    value: float
    low: float
    high: float
    said: str
    colour: str = COLOURS[0]


@dataclass(frozen=True, slots=True)
class _Drawn:
    height: float
    shapes: tuple[str, ...]


def sheet(title: str, said: str, parts: Sequence[_Drawn]) -> str:
    """One SVG of several plots below each other."""
    y, shapes = 52.0, [_text(12, 24, title, "font-size='15' font-weight='600'")]
    shapes.append(_text(12, 42, said, "fill='#57606a'"))
    for part in parts:
        shapes.append(f"<g transform='translate(0 {y:.0f})'>")
        shapes += [*part.shapes, "</g>"]
        y += part.height
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {y:.0f}' width='{WIDTH}' "
        f"role='img' aria-label='{escape(title, quote=True)}' "
        "font-family='system-ui, sans-serif' font-size='12' fill='#24292f'>"
        f"<rect width='{WIDTH}' height='{y:.0f}' fill='#ffffff'/>"
    )
    return "\n".join([head, *shapes, "</svg>", ""])


def bars(title: str, rows: Sequence[Bar], most: float) -> _Drawn:
    """Horizontal bars from 0 to ``most``, with whiskers from ``low`` to ``high``."""
    scale = (WIDTH - LEFT - RIGHT) / most if most > 0 else 0.0
    shapes = [_text(12, 16, title, "font-weight='600'")]
    y = 26
    for row in rows:
        length = max(1.0, min(row.value, most) * scale)
        low, high = (LEFT + min(max(end, 0.0), most) * scale for end in (row.low, row.high))
        middle = y + BAR / 2
        shapes += [
            _text(LEFT - 8, y + 12, row.label, "text-anchor='end'"),
            f"<rect x='{LEFT}' y='{y}' width='{length:.1f}' height='{BAR}' rx='2' fill='{row.colour}'/>",
            f"<line x1='{low:.1f}' y1='{middle}' x2='{high:.1f}' y2='{middle}' stroke='#24292f'/>",
            _text(max(LEFT + length, high) + 6, y + 12, row.said, "fill='#57606a'"),
        ]
        y += BAR + GAP
    return _Drawn(y + 14, tuple(shapes))


def curves(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], axes: tuple[str, str]
) -> _Drawn:
    """Step curves of shares (0 to 1) over the first of ``axes``; a point holds until the next one."""
    most = max((x for points in series.values() for x, _ in points), default=1.0) or 1.0
    left, top, width = 60, 26, WIDTH - 60 - 220
    shapes = [_text(12, 16, title, "font-weight='600'"), *_grid(left, top, width, most)]
    shapes.append(_text(left + width / 2, top + HEIGHT + 32, axes[0], "text-anchor='middle'"))
    shapes.append(_text(left, top - 2, axes[1], "fill='#57606a'"))
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = _steps([(left + x / most * width, top + HEIGHT * (1 - y)) for x, y in points])
        y = top + 14 + 18 * number
        shapes += [
            f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='2'/>",
            f"<rect x='{left + width + 14}' y='{y - 9}' width='12' height='4' fill='{colour}'/>",
            _text(left + width + 32, y - 3, name),
        ]
    return _Drawn(top + HEIGHT + 48, tuple(shapes))


def _grid(left: float, top: float, width: float, most: float) -> Iterable[str]:
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + HEIGHT * (1 - share)
        yield f"<line x1='{left}' y1='{y:.1f}' x2='{left + width}' y2='{y:.1f}' stroke='#d0d7de'/>"
        yield _text(left - 6, y + 4, f"{share:.0%}", "text-anchor='end' fill='#57606a'")
    for part in range(5):
        x = left + width * part / 4
        said = f"{most * part / 4:.3g}"
        yield _text(x, top + HEIGHT + 16, said, "text-anchor='middle' fill='#57606a'")


def _steps(points: Sequence[tuple[float, float]]) -> str:
    if not points:
        return ""
    x, y = points[0]
    path = [f"M{x:.1f} {y:.1f}"]
    path += [f"H{to_x:.1f}V{to_y:.1f}" for to_x, to_y in points[1:]]
    return "".join(path)


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f"<text x='{x:.0f}' y='{y:.0f}' {style}>{escape(text)}</text>"
