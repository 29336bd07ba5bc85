"""The closed form of FSMoE finds the number of pieces that trying all of them finds."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epsc import driver
from epsc.ir.errors import EpsError
from epsc.machine.simulate import simulate
from epsc.passes.degree import Affine, Pipeline, pipeline_of

FSMOE = Path(__file__).parents[2] / "examples" / "papers" / "fsmoe.eps"
MOST = 8

affines = st.builds(Affine, st.floats(0.0, 4.0), st.floats(0.0, 32.0))
pipelines = st.builds(Pipeline, affines, affines, affines, affines)


@given(pipelines, st.integers(1, 64))
@settings(max_examples=300, deadline=None)
def test_is_the_least_of_all(pipeline: Pipeline, most: int) -> None:
    best = min(pipeline.seconds(pieces) for pieces in range(1, most + 1))
    assert pipeline.seconds(pipeline.degree(most)) <= best * (1 + 1e-9)


def dry_run(ops: Pipeline, pieces: int) -> float:
    """Three resources that take what is ready, first come first served; all dispatches before any combine."""
    a, g, e, s = (op.at(pieces) for op in (ops.all2all, ops.gather, ops.experts, ops.scatter))
    inter = intra = chip = 0.0
    waiting: list[tuple[float, int, str]] = []
    for i in range(pieces):
        inter += a
        waiting.append((inter, i, "gather"))
    combines: list[float] = []
    while waiting:
        waiting.sort()
        at, i, what = waiting.pop(0)
        if what == "gather":
            intra = max(intra, at) + g
            waiting.append((intra, i, "experts"))
        elif what == "experts":
            chip = max(chip, at) + e
            waiting.append((chip, i, "scatter"))
        else:
            intra = max(intra, at) + s
            combines.append(intra)
    for at in combines:
        inter = max(inter, at) + a
    return inter


@given(pipelines, st.integers(1, 12))
@settings(max_examples=300, deadline=None)
def test_no_run_is_faster_than_it_says(pipeline: Pipeline, pieces: int) -> None:
    assert dry_run(pipeline, pieces) >= pipeline.seconds(pieces) * (1 - 1e-9)


def test_is_near_the_best_of_all_runs() -> None:
    """Bounds leave out bubbles: what it takes is hardly slower than the best of all dry runs."""
    draw = Random(0)

    def affine() -> Affine:
        return Affine(draw.uniform(0, 2), draw.uniform(0, 32))

    ratios = []
    for _ in range(500):
        pipeline = Pipeline(affine(), affine(), affine(), affine())
        best = min(dry_run(pipeline, pieces) for pieces in range(1, MOST + 1))
        ratios.append(dry_run(pipeline, pipeline.degree(MOST)) / best)
    assert max(ratios) < 1.2 and sum(ratios) / len(ratios) < 1.02, (max(ratios), sum(ratios) / len(ratios))


def test_without_anything_to_hide_it_cuts_nothing() -> None:
    free, fixed = Affine(0.0, 0.0), Affine(1.0, 0.0)
    assert Pipeline(fixed, free, free, free).degree(MOST) == 1
    assert Pipeline(Affine(0.0, 1.0), free, Affine(0.0, 8.0), free).degree(MOST) == MOST
    # Two pieces keep the links between nodes busy all the time: more cannot help.
    assert Pipeline(Affine(0.0, 8.0), free, Affine(0.0, 8.0), free).degree(MOST) == 2


@pytest.mark.parametrize(("load", "limit"), [(512, 1.12), (4096, 1.05), (16384, 1.05)])
def test_is_near_the_best_of_all_simulations(load: int, limit: float) -> None:
    """Of the file, on the shipped profile: the simulator knows of hosts, SMs and other ops, which count at 512."""

    def layer_of(pieces: int) -> driver.Layer:
        return driver.understand(driver.read(FSMOE), driver.Options({"r": str(pieces)}))

    layer = layer_of(1)
    chosen = pipeline_of(driver.plan(layer, "serial").schedule, layer.cluster, load).degree(MOST)
    times = [
        simulate(driver.plan(layer_of(pieces), "fsmoe").schedule, layer.cluster, load).total
        for pieces in range(1, MOST + 1)
    ]
    assert times[chosen - 1] <= limit * min(times), (chosen, times)


def test_refuses_what_is_cut() -> None:
    layer = driver.understand(driver.read(FSMOE), driver.Options({"r": "2"}))
    with pytest.raises(EpsError, match="cut already"):
        pipeline_of(driver.plan(layer, "fsmoe").schedule, layer.cluster, 4096)
