"""Every file that ships passes `epsc check` as it stands: at its own size, on its own cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from epsc import driver

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("file", sorted(EXAMPLES.rglob("*.eps")), ids=lambda file: file.stem)
def test_every_schedule_is_proven(file: Path) -> None:
    layer, plans = driver.check(driver.read(file), driver.Options())
    assert len(plans) == sum(not (schedule.auto or schedule.by_load) for schedule in layer.schedules)
