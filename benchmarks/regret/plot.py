"""Predicted against measured, as an SVG."""

from __future__ import annotations

from math import log10

from benchmarks.regret.report import Row

SIZE, EDGE = 460, 50
COLOURS = {"collectives": "#4477aa", "one-sided": "#228833", "one-sided, as a CUDA graph": "#aa3377"}
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def svg(rows: list[Row]) -> str:
    """Every measurement as a dot."""
    dots = [(m.ms, m.predicted, _sort(m.name, row)) for row in rows for m in row.every]
    numbers = [ms for dot in dots for ms in dot[:2]]
    least = max((tick for tick in TICKS if tick <= min(numbers)), default=TICKS[0])
    most = min((tick for tick in TICKS if tick >= max(numbers)), default=TICKS[-1])

    def at(ms: float) -> float:
        return (log10(ms) - log10(least)) / (log10(most) - log10(least)) * SIZE

    whole = SIZE + 2 * EDGE
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="{whole}" font-family="sans-serif">']
    lines.append(f'<rect width="{whole}" height="{whole}" fill="white"/>')
    for tick in TICKS:
        if least <= tick <= most:
            x, y = EDGE + at(tick), EDGE + SIZE - at(tick)
            lines.append(f'<path d="M{x:.1f} {EDGE}V{EDGE + SIZE}M{EDGE} {y:.1f}H{EDGE + SIZE}" stroke="#eee"/>')
            under = EDGE + SIZE + 16
            lines.append(f'<text x="{x:.1f}" y="{under}" font-size="11" text-anchor="middle">{tick:g}</text>')
            lines.append(f'<text x="{EDGE - 6}" y="{y + 4:.1f}" font-size="11" text-anchor="end">{tick:g}</text>')
    for factor, dash in ((1, ""), (1.2, ' stroke-dasharray="3"'), (1 / 1.2, ' stroke-dasharray="3"')):
        low, high = max(least, least / factor), min(most, most / factor)
        path = f"M{EDGE + at(low):.1f} {EDGE + SIZE - at(low * factor):.1f}"
        path += f"L{EDGE + at(high):.1f} {EDGE + SIZE - at(high * factor):.1f}"
        lines.append(f'<path d="{path}" stroke="#888"{dash}/>')
    for ms, said, sort in dots:
        x, y = EDGE + at(ms), EDGE + SIZE - at(max(said, least))
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[sort]}" fill-opacity="0.7"/>')
    for i, (sort, colour) in enumerate(COLOURS.items()):
        y = EDGE + 16 + 18 * i
        lines.append(f'<circle cx="{EDGE + 14}" cy="{y}" r="4" fill="{colour}"/>')
        lines.append(f'<text x="{EDGE + 24}" y="{y + 4}" font-size="12">{sort}</text>')
    middle = whole / 2
    lines.append(f'<text x="{middle}" y="{whole - 10}" font-size="12" text-anchor="middle">measured, ms</text>')
    lines.append(f'<text x="14" y="{middle}" font-size="12" transform="rotate(-90 14 {middle})">predicted, ms</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _sort(name: str, row: Row) -> str:
    collectives, one_sided, graphs = COLOURS
    if name.endswith("+graph"):
        return graphs
    return one_sided if f"{name}+graph" in row.by_name else collectives
