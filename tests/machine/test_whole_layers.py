"""Whole layers as measured on 2 x H200, which no number of the profile was taken from (docs/cost-model.md)."""

from pathlib import Path
from statistics import median, quantiles

from epsc import driver
from epsc.machine.simulate import simulate
from epsc.passes.pipeline import configured

EXAMPLE = Path(__file__).parents[2] / "examples" / "deepseek_v2.eps"
PLANS = (("serial", 1), ("eps", 2), ("eps", 4), ("eps", 5), ("eps", 8), ("capacity", 1))
MEASURED = {
    1024: (2.37, 2.74, 3.04, 3.29, None, 5.68),  # eps with 8 groups is one of those that `step_us` was taken from
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


LATER = {
    # tokens -> serial, one_sided, one_sided as a CUDA graph
    "deepseek_v2": {
        16: (2.85, 2.18, 0.762),
        64: (2.73, 1.96, 1.04),
        256: (2.73, 2.06, 1.08),
        1024: (2.39, 1.54, 1.28),
        4096: (4.59, 3.09, 2.92),
        8192: (8.07, 5.43, 5.57),
    },
    "qwen3_30b_a3b": {
        16: (2.41, 1.73, 0.223),
        64: (2.67, 1.89, 0.251),
        256: (3.08, 1.86, 0.270),
        2048: (2.99, 2.06, 0.451),
        8192: (3.04, 1.87, 1.31),
        16384: (5.50, 2.70, 2.47),
    },
    "mixtral_8x7b": {
        16: (1.69, 1.15, 0.456),
        64: (1.92, 1.37, 0.465),
        256: (2.08, 1.46, 0.542),
        4096: (5.68, 4.66, 4.54),
        8192: (10.24, 9.44, 9.58),
    },
    "dbrx": {
        16: (1.93, 1.34, 0.856),
        64: (1.84, 1.27, 0.890),
        256: (1.89, 1.28, 0.956),
        4096: (11.30, 10.39, 10.63),
    },
}
"""Milliseconds on another 2 x H200, by the programs of `epsc bench`; measured after the profile was written."""
HOST_BOUND = 2048
"""Up to so many tokens, what is not a graph waits for the host."""


def later(plan: str, graph: bool) -> dict[tuple[str, int], tuple[float, float]]:
    """(layer, tokens) -> measured and predicted milliseconds."""
    found = {}
    for name, rows in LATER.items():
        for tokens, row in rows.items():
            options = driver.Options({"ep": "2", "tokens": str(tokens)})
            layer = driver.understand(driver.read(EXAMPLE.with_name(f"{name}.eps")), options)
            said = simulate(driver.plan(layer, plan).schedule, layer.cluster, tokens, graph=graph).total * 1e3
            found[name, tokens] = row[2 if graph else plan == "one_sided"], said
    return found


def errors_of(plan: str, graph: bool) -> dict[tuple[str, int], float]:
    return {key: abs(said / ms - 1) for key, (ms, said) in later(plan, graph).items()}


def test_predictions_of_layers_that_were_measured_later() -> None:
    graphs = list(errors_of("one_sided", graph=True).values())
    assert median(graphs) <= 0.08
    assert quantiles(graphs, n=20, method="inclusive")[-1] <= 0.2
    for plan in ("serial", "one_sided"):
        large = [error for (_, tokens), error in errors_of(plan, graph=False).items() if tokens > HOST_BOUND]
        assert len(large) == 7
        assert median(large) <= 0.08
        assert max(large) <= 0.2


def test_what_was_measured_fastest_is_predicted_fastest() -> None:
    for tokens, row in MEASURED.items():
        fastest = min((ms, plan) for ms, plan in zip(row, PLANS, strict=True) if ms is not None)[1]
        assert fastest == min(PLANS, key=lambda plan: predicted(*plan, tokens))
