"""Amounts with three digits that count, and their units."""

from __future__ import annotations

from collections.abc import Sequence

from epsc.machine.timeline import Timeline


def duration(seconds: float) -> str:
    """`3.42 ms`, `65.0 us`."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{_three_digits(seconds / unit)} {name}"
    return f"{seconds * 1e9:.0f} ns" if seconds else "0"


def amount(value: float, unit: str = "") -> str:
    """`287 MB`, `309 G`; `-` for nothing."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{_three_digits(value / size)} {letter}{unit}"
    return f"{value:.0f} {unit}".strip() if value else "-"


def _three_digits(value: float) -> str:
    # Not `.3g`: it writes 16.0 as 16, so that columns do not line up, and 1000 as 1e+03.
    return f"{value:.{max(0, 2 - (value >= 9.995) - (value >= 99.95))}f}"


def whose(timeline: Timeline) -> str:
    """The ranks that a timeline is of, if it is not of all."""
    return f", {ranks_words(timeline.ranks)} with {timeline.share:.3g} x the rows" if timeline.ranks else ""


def ranks_words(ranks: Sequence[int]) -> str:
    """`rank 0`, or `ranks 1-5, 7`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {words}"
