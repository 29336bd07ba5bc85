"""Fixtures for tests that run emitted programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from epsc import driver, plans
from tests.programs.ranks import Job, Ranks

Prepare = Callable[..., Job]


@pytest.fixture(scope="session")
def ranks_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Ranks]]:
    """Ranks by count, started when first asked for."""
    started: dict[int, Ranks] = {}

    def get(count: int) -> Ranks:
        if count not in started or started[count].stopped:
            started[count] = Ranks(count, tmp_path_factory.mktemp("ranks"))
        return started[count]

    yield get
    for ranks in started.values():
        ranks.stop()


@pytest.fixture(scope="session")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """Compile a layer's schedule to a file, and make a job of it."""
    folder = tmp_path_factory.mktemp("programs")
    made: dict[tuple[object, ...], tuple[str, str]] = {}

    def job(layer: driver.Layer, schedule: str, tokens: tuple[int, ...], **more: object) -> Job:
        key = layer.source.text, schedule, layer.cluster.mesh.ep, tuple(sorted(layer.options.defines.items()))
        if key not in made:
            made_of = plans.plans(layer, schedule)
            path = Path(folder) / f"program{len(made)}.py"
            path.write_text(plans.write(made_of).text)
            made[key] = str(path), str(made_of.parts[0].schedule.graph)
        return Job(*made[key], tokens, **more)  # type: ignore[arg-type]

    return job
