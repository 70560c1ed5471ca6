"""Pictures of a page, as SVG in the text: points under a roofline, and time over T. Axes are logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from mixc.targets import Target

WIDTH, HEIGHT, LEFT, BELOW, RIGHT = 640, 340, 64, 44, 14
COLOURS = ("#2563eb", "#d9480f", "#0a7d4f", "#8b3fc7", "#7a6a00")
Points = Sequence[tuple[float, float]]


class Plot:
    """Lines and points on two logarithmic axes that hold all of them."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str]):
        self.x, self.y = ((math.log10(a), math.log10(b)) for a, b in (x, y))
        self.parts = [f'<rect x="{LEFT}" y="10" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - BELOW - 10}" '
                      'class="frame"/>']
        for axis, (low, high) in enumerate((self.x, self.y)):
            for e in range(math.ceil(low), math.floor(high) + 1):
                self._tick(axis, e, -(-(math.floor(high) - math.ceil(low) + 1) // 7))
        middle = (WIDTH + LEFT) / 2
        self.parts += [f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(labels[0])}</text>',
                       f'<text transform="translate(14 {HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">'
                       f"{escape(labels[1])}</text>"]

    def _tick(self, axis: int, e: int, every: int) -> None:
        px, py = self.at(10.0 ** e, 10 ** self.y[0]) if axis == 0 else self.at(10 ** self.x[0], 10.0 ** e)
        x2, y2 = (px, 10) if axis == 0 else (WIDTH - RIGHT, py)
        self.parts.append(f'<line x1="{px:.1f}" y1="{py:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="grid"/>')
        if e % every == 0:
            power = f'10<tspan dy="-5" font-size="9">{e}</tspan>'
            x, y, anchor = (px, py + 16, "middle") if axis == 0 else (px - 6, py + 4, "end")
            self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{power}</text>')

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (math.log10(y) - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BELOW - up * (HEIGHT - BELOW - 10)

    def line(self, points: Points, colour: str, dashed: bool = False) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*p) for p in points))
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"'
                          + (' stroke-dasharray="5 4"' if dashed else "") + "/>")

    def mark(self, point: tuple[float, float], colour: str, label: str) -> None:
        x, y = self.at(*point)
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"><title>{escape(label)}</title>'
                          "</circle>")

    def drawn(self, title: str, legend: Sequence[tuple[str, str]]) -> str:
        keys = "".join(f'<span><i style="background:{c}"></i>{escape(t)}</span>' for t, c in legend)
        return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
                f'{"".join(self.parts)}</svg><p class="legend">{keys}</p>')


def roofline(points: Sequence[tuple[str, float, float]], target: Target) -> str:
    """`points`: a name, FLOPs a byte, and the FLOP/s that the model expects."""
    peak, band = target.peaks["bf16"] * 1e12, target.bandwidth * 1e9
    low = min([0.1, *(x / 2 for _, x, _ in points)])
    high = max([4 * peak / band, *(2 * x for _, x, _ in points)])
    floor = min([band * low, *(y / 3 for _, _, y in points)])
    plot = Plot((low, high), (floor, peak * 3), ("FLOPs a byte", "FLOP/s"))
    plot.line([(low, band * low), (peak / band, peak), (high, peak)], "currentColor")
    legend = [(f"limit of {target.title}: {target.bandwidth:.0f} GB/s, {peak / 1e12:.0f} TFLOP/s", "currentColor")]
    for (what, x, y), colour in zip(points, COLOURS, strict=False):
        plot.mark((x, y), colour, what)
        legend.append((f"{what}: {x:.3g} FLOPs a byte, {y / 1e12:.3g} TFLOP/s", colour))
    return plot.drawn("roofline", legend)


def over_T(lines: Mapping[str, Points]) -> str:
    """Seconds over T."""
    xs, ys = ([p[i] for points in lines.values() for p in points] for i in (0, 1))
    plot = Plot((min(xs), max(xs)), (min(ys) / 2, max(ys) * 2), ("T, tokens", "seconds"))
    for points, colour in zip(lines.values(), COLOURS, strict=False):
        plot.line(points, colour)
    return plot.drawn("time over T", list(zip(lines, COLOURS, strict=False)))
