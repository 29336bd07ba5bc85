"""What was found, on every rank alike, and how it is printed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from epsc.bench.ranks import Ranks


@dataclass
class Table:
    """What was found, on every rank alike."""

    ranks: Ranks
    until: float
    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        self.failed.append(what)
        self.lines.append(f"FAILED: {what}")

    def attempt(self, what: str, needs_s: float, do: Callable[[], object]) -> bool:
        """Do it on all ranks, if there is time left; a fault is noted and not raised."""
        late = self.ranks.everyone(time.monotonic() + needs_s > self.until)[0]
        if late:
            self.lines.append(f"left out: {what}, for want of time")
            return False
        start = time.monotonic()
        _, reason = self.ranks.attempt(do)
        if reason:
            self.fail(f"{what}: {reason.splitlines()[-1]}")
            if self.ranks.rank == 0:
                print(f"{what}:\n{reason}", flush=True)
        elif self.ranks.rank == 0:
            print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)
        return not reason

    def figures(
        self, head: str, took: dict[str, list[float]], errors: dict[str, float], tokens: dict[str, int]
    ) -> None:
        """A line for each contender: time of the slowest rank, tokens of all ranks per second, ratio to the first."""
        times = {name: median(each) for name, each in took.items()}
        first = min(each / tokens[name] for name, each in times.items() if name == next(iter(times)))
        self.lines += ["", head, f"  {'':40}{'ms':>9}{'tokens/ms':>11}{'speed':>8}{'error':>10}"]
        for name, ms in times.items():
            speed = first / (ms / tokens[name])
            told = f"{errors[name]:.1e}" if name in errors else "-"
            self.lines.append(f"  {name:40}{ms:9.3f}{tokens[name] / ms:11.0f}{speed:7.2f}x{told:>10}")
