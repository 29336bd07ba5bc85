"""Whole layers as measured on 2 x H200, which no number of the profile was taken from (docs/cost-model.md)."""

from pathlib import Path
from statistics import median, quantiles

from epsc import driver
from epsc.machine.simulate import simulate
from epsc.passes.pipeline import configured

EXAMPLE = Path(__file__).parents[2] / "examples" / "deepseek_v2.eps"
PLANS = (("serial", 1), ("eps", 2), ("eps", 4), ("eps", 5), ("eps", 8), ("capacity", 1))
MEASURED = {
    1024: (2.37, 2.74, 3.04, 3.29, None, 5.68),  # eps with 8 groups is what `step_us` was taken from
    4096: (4.69, 5.91, 5.79, 5.72, 5.78, 7.06),
    8192: (8.35, 8.91, 8.58, 8.46, 8.66, 9.60),
}
"""Milliseconds of DeepSeek-V2's layer; its programs had activations of their own, on torch 2.11 and NCCL 2.28."""


def predicted(name: str, groups: int, tokens: int) -> float:
    defines = {"ep": "2", "tokens": str(tokens), **({"groups": str(groups)} if name == "eps" else {})}
    options = driver.Options(defines, pipeline=configured("fuse{epilogue=false}"))
    layer = driver.understand(driver.read(EXAMPLE), options)
    return simulate(driver.plan(layer, name).schedule, layer.cluster, tokens).total * 1e3


def test_predictions_of_whole_layers() -> None:
    errors = []
    for tokens, row in MEASURED.items():
        for (name, groups), ms in zip(PLANS, row, strict=True):
            if ms is not None:
                errors.append(abs(predicted(name, groups, tokens) / ms - 1))
    assert len(errors) == 17
    assert median(errors) <= 0.08
    assert quantiles(errors, n=20, method="inclusive")[-1] <= 0.2


def test_what_was_measured_fastest_is_predicted_fastest() -> None:
    for tokens, row in MEASURED.items():
        fastest = min((ms, plan) for ms, plan in zip(row, PLANS, strict=True) if ms is not None)[1]
        assert fastest == min(PLANS, key=lambda plan: predicted(*plan, tokens))
