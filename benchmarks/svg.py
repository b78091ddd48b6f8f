"""A bar chart as SVG, written directly: requests a second with eight clients, by model and server."""

import math
from collections.abc import Sequence
from html import escape
from typing import Final

from benchmarks.serving_report import NAMES, Results

__all__ = ["throughput_chart"]

WIDTH: Final = 860
LEFT: Final = 210
RIGHT: Final = 80
BAR: Final = 16
GAP: Final = 5
TITLE: Final = 34
COLOURS: Final = {
    "muster": "#1f6feb",
    "mlserver": "#d29922",
    "mlflow": "#a371f7",
    "direct": "#8b949e",
}


def throughput_chart(results: Results) -> str:
    """The chart of one run."""
    bars = [bar for model, _, _ in results.models for bar in _bars(results, model)]
    least = min((per_s for _, _, per_s, _ in bars), default=1.0)
    most = max((per_s for _, _, per_s, _ in bars), default=10.0)
    low, high = math.floor(math.log10(max(least, 1.0))), math.ceil(math.log10(most))
    shapes: list[str] = []
    y = 62
    for model, size, what in results.models:
        shapes.append(_text(12, y + 14, f"{size}: {what}", "font-weight='600'"))
        y += TITLE - BAR + GAP
        for server, way, per_s, p50_ms in _bars(results, model):
            length = (
                (math.log10(max(per_s, 10**low)) - low) / (high - low) * (WIDTH - LEFT - RIGHT - 60)
            )
            shapes += _bar(
                y, server, f"{NAMES[server]}, {way}", length, f"{per_s:,.0f} ({p50_ms:.2f} ms)"
            )
            y += BAR + GAP
        y += 14
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {y + 8}' width='{WIDTH}' "
        f"font-family='system-ui, sans-serif' font-size='12' fill='#24292f'>"
        f"<rect width='{WIDTH}' height='{y + 8}' fill='#ffffff'/>"
    )
    titles = [
        _text(12, 24, "Requests a second, 8 clients (median latency); logarithmic", "font-size='15' font-weight='600'"),
        _text(12, 44, f"{results.machine}; medians of {results.rounds} rounds", "fill='#57606a'"),
    ]  # fmt: skip
    return "\n".join([head, *titles, *shapes, "</svg>", ""])


def _bars(results: Results, model: str) -> Sequence[tuple[str, str, float, float]]:
    """Server, way, requests a second and median of each bar of a model, the fastest first."""
    cells = [
        c
        for c in results.cells
        if c.model == model and c.clients == (2 if c.server == "direct" else 8)
    ]
    bars = [
        (c.server, "2 threads" if c.server == "direct" else c.way, c.per_s, c.p50_ms) for c in cells
    ]
    return sorted(bars, key=lambda bar: -bar[2])


def _bar(y: int, server: str, label: str, length: float, value: str) -> Sequence[str]:
    return (
        _text(LEFT - 8, y + 12, label, "text-anchor='end'"),
        f"<rect x='{LEFT}' y='{y}' width='{max(length, 1):.1f}' height='{BAR}' rx='2' fill='{COLOURS[server]}'/>",
        _text(round(LEFT + length + 6), y + 12, value, "fill='#57606a'"),
    )


def _text(x: int, y: int, text: str, style: str = "") -> str:
    return f"<text x='{x}' y='{y}' {style}>{escape(text)}</text>"
