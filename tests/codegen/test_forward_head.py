"""What a forward of a one-sided program does first."""

from __future__ import annotations

from pathlib import Path

from epsc import driver

EXAMPLE = Path(__file__).parents[2] / "examples" / "deepseek_v2.eps"


def test_a_forward_is_counted_before_any_lane_may_run() -> None:
    """A side lane that goes on first can signal with the number of the forward before: on GPUs, 16 tokens hung."""
    layer = driver.understand(driver.read(EXAMPLE), driver.Options({"ep": "2"}))
    lines = [line.strip() for line in driver.write(driver.plan(layer, "one_sided")).text.splitlines()]
    counted = next(i for i, line in enumerate(lines) if line.startswith("self.symmetric.begin("))
    released = lines.index("self.run.begin()")
    assert counted < released
    assert sum(line.startswith("self.symmetric.begin(") for line in lines) == 1
