"""A picture of a measurement: panels below each other over one axis of time, as SVG. No library: lines, dots and numbers are all there is."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, GAP, TOP = 760, 130, 44, 12, 46, 26
COLOURS = ("#1f6feb", "#d1242f", "#2da44e")
DASHES = ("", "5 3", "1 3")


@dataclass(frozen=True)
class Panel:
    """`series`: name -> points (time, value). `step`: a value holds until the next; `dots`: points instead of lines; `line`: a level to compare with."""

    title: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    step: bool = False
    dots: bool = False
    line: float | None = None


def svg(panels: Sequence[Panel], most: float, axis: str) -> str:
    """All panels from time 0 to `most`."""
    tall = TOP + len(panels) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" font-family="sans-serif" font-size="11" fill="#24292f">',
        f'<rect width="{WIDTH}" height="{tall}" fill="#ffffff"/>',
    ]
    every = _nice(most / 8)
    for index, panel in enumerate(panels):
        top = TOP + index * (HEIGHT + GAP)
        parts += _panel(panel, top, most, every)
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{tall - 6}" text-anchor="end">{escape(axis)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, top: float, most: float, every: float) -> list[str]:
    values = [value for points in panel.series.values() for _, value in points] + ([panel.line] if panel.line else [])
    high = _nice(max([*values, 1e-9]) / 4) * math.ceil(max([*values, 1e-9]) / _nice(max([*values, 1e-9]) / 4))

    def x(at: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * at / most, 1)

    def y(value: float) -> float:
        return round(top + HEIGHT * (1 - value / high), 1)

    parts = [f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{escape(panel.title)}</text>']
    value = 0.0
    while value <= high * 1.001:
        parts.append(f'<path d="M{LEFT} {y(value)}H{WIDTH - RIGHT}" stroke="#d0d7de" stroke-width="0.6"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>')
        value += _nice(high / 4)
    at = 0.0
    while at <= most:
        parts.append(f'<text x="{x(at)}" y="{top + HEIGHT + 14}" text-anchor="middle">{at:g}</text>')
        at += every
    if panel.line is not None:
        parts.append(f'<path d="M{LEFT} {y(panel.line)}H{WIDTH - RIGHT}" stroke="#d1242f" stroke-dasharray="4 4"/>')
    for number, (name, points) in enumerate(panel.series.items()):
        colour = COLOURS[number % len(COLOURS)]
        if panel.dots:
            parts.append(f'<g fill="{colour}">' + "".join(f'<circle cx="{x(at)}" cy="{y(value)}" r="1.4"/>' for at, value in points) + "</g>")
        else:
            parts.append(
                f'<path d="{_path(points, x, y, panel.step)}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{DASHES[number % 3]}"/>'
            )
        if name:
            left = WIDTH - RIGHT - 78 * (len(panel.series) - number)
            parts.append(f'<path d="M{left} {top - 12}h16" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{DASHES[number % 3]}"/>')
            parts.append(f'<text x="{left + 20}" y="{top - 8}">{escape(name)}</text>')
    return parts


def _path(points: Sequence[tuple[float, float]], x: Callable[[float], float], y: Callable[[float], float], step: bool) -> str:
    words: list[str] = []
    for index, (at, value) in enumerate(points):
        if not words:
            words.append(f"M{x(at)} {y(value)}")
        elif not step:
            words.append(f"L{x(at)} {y(value)}")
        elif index == len(points) - 1 or value != points[index - 1][1]:
            words.append(f"H{x(at)}V{y(value)}")
    return "".join(words)


def _nice(number: float) -> float:
    """1, 2 or 5 times a power of ten, at least `number`."""
    power = 10.0 ** math.floor(math.log10(max(number, 1e-12)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= number * 0.999999)
