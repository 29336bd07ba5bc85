"""How an emitted program aligns the clocks of ranks: whatever they are, it is right as far as it says."""

from __future__ import annotations

import importlib.util
import random
import sys
import types

import pytest

from tests.codegen.layers import planned, program_of


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> types.ModuleType:
    path = tmp_path_factory.mktemp("clocks") / "program.py"
    path.write_text(program_of(planned("tiny", "eps", ep="2")).text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("program_with_clocks", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def meetings(rng: random.Random, late: list[float], count: int, wait: float) -> list[tuple[list[float], list[float]]]:
    """What clocks that are so late read before and after ranks met, each of which comes and goes when it likes."""
    found = []
    for i in range(count):
        come = [1e4 * i + rng.expovariate(1 / wait) for _ in late]
        gone = [max(come) + rng.expovariate(1 / wait) for _ in late]
        found.append(tuple([t + by for t, by in zip(times, late, strict=True)] for times in (come, gone)))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_is_right_as_far_as_it_says(program: types.ModuleType, seed: int) -> None:
    rng = random.Random(seed)
    late = [0.0, *(rng.uniform(-1e6, 1e6) for _ in range(rng.randrange(1, 9)))]
    wait = rng.choice([1.0, 30.0, 500.0])
    met = meetings(rng, late, 50, wait)
    found, off = program.aligned(met)
    pairs = [(i, j) for i in range(len(late)) for j in range(len(late))]
    worst = max(abs((found[j] - found[i]) - (late[j] - late[i])) for i, j in pairs)
    assert worst <= off + 1e-6
    assert 0 < off < 4 * wait, "the closest meeting counts, not the mean"
    for before, after in met:
        earliest = min(t - by for t, by in zip(after, found, strict=True))
        assert earliest >= max(t - by for t, by in zip(before, found, strict=True)) - 1e-6, "nothing goes back in time"


def test_what_a_third_says_of_two_counts(program: types.ModuleType) -> None:
    """Ranks 1 and 2 each met rank 0 closely, and one another only from afar."""
    far, near = 1e6, 1.0
    with_one = ([0.0, -near, -far], [near, 0.0, far])
    with_two = ([0.0, -far, -near], [near, far, 0.0])
    found, off = program.aligned([with_one, with_two])
    assert off <= 2 * near and max(map(abs, found)) <= near


def test_a_rank_alone_is_on_time(program: types.ModuleType) -> None:
    assert program.aligned([([1.0], [3.0])]) == ([0.0], 0.0)
