"""Draw predicted against measured: `python -m tests.machine.plot_whole_layers > docs/predicted.svg`."""

from __future__ import annotations

from math import log10

from tests.machine.test_whole_layers import HOST_BOUND, MEASURED, PLANS, later, predicted

LEAST, MOST, SIZE, EDGE = 0.2, 20.0, 460, 50


def at(ms: float) -> float:
    """Where a time lies on an axis, in pixels from its start."""
    return (log10(ms) - log10(LEAST)) / (log10(MOST) - log10(LEAST)) * SIZE


def main() -> None:
    """Print the SVG."""
    points: list[tuple[float, float, str]] = []
    for tokens, row in MEASURED.items():
        points += [
            (ms, predicted(*plan, tokens), "collective") for ms, plan in zip(row, PLANS, strict=True) if ms is not None
        ]
    for plan, graph in (("serial", False), ("one_sided", False), ("one_sided", True)):
        for (_, tokens), (ms, said) in later(plan, graph).items():
            sort = "graph" if graph else "host" if tokens <= HOST_BOUND else plan.replace("serial", "collective")
            points.append((ms, said, sort))
    colours = {"collective": "#4477aa", "one_sided": "#228833", "graph": "#aa3377", "host": "#bbbbbb"}
    words = {
        "collective": "collectives",
        "one_sided": "one-sided",
        "graph": "one-sided, CUDA graph",
        "host": f"waits for the host (up to {HOST_BOUND} tokens)",
    }
    whole = SIZE + 2 * EDGE
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="{whole}" font-family="sans-serif">']
    lines.append(f'<rect width="{whole}" height="{whole}" fill="white"/>')
    for tick in (0.2, 0.5, 1, 2, 5, 10, 20):
        x, y = EDGE + at(tick), EDGE + SIZE - at(tick)
        lines.append(f'<path d="M{x:.1f} {EDGE}V{EDGE + SIZE}M{EDGE} {y:.1f}H{EDGE + SIZE}" stroke="#eee"/>')
        lines.append(f'<text x="{x:.1f}" y="{EDGE + SIZE + 16}" font-size="11" text-anchor="middle">{tick:g}</text>')
        lines.append(f'<text x="{EDGE - 6}" y="{y + 4:.1f}" font-size="11" text-anchor="end">{tick:g}</text>')
    for factor, dash in ((1, ""), (1.2, ' stroke-dasharray="3"'), (1 / 1.2, ' stroke-dasharray="3"')):
        low, high = max(LEAST, LEAST / factor), min(MOST, MOST / factor)
        path = f"M{EDGE + at(low):.1f} {EDGE + SIZE - at(low * factor):.1f}"
        path += f"L{EDGE + at(high):.1f} {EDGE + SIZE - at(high * factor):.1f}"
        lines.append(f'<path d="{path}" stroke="#888"{dash}/>')
    for ms, said, sort in points:
        x, y = EDGE + at(ms), EDGE + SIZE - at(said)
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colours[sort]}" fill-opacity="0.8"/>')
    for i, (sort, colour) in enumerate(colours.items()):
        y = EDGE + 16 + 18 * i
        lines.append(f'<circle cx="{EDGE + 14}" cy="{y}" r="4" fill="{colour}"/>')
        lines.append(f'<text x="{EDGE + 24}" y="{y + 4}" font-size="12">{words[sort]}</text>')
    lines.append(f'<text x="{whole / 2}" y="{whole - 10}" font-size="12" text-anchor="middle">measured, ms</text>')
    lines.append(
        f'<text x="14" y="{whole / 2}" font-size="12" transform="rotate(-90 14 {whole / 2})">predicted, ms</text>'
    )
    print("\n".join([*lines, "</svg>"]))


if __name__ == "__main__":
    main()
