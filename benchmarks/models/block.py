"""A block of a model: compiled, from its `.eps` file, and by transformers; checked and timed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

import epsc
from benchmarks.models.cases import DTYPE, GROUPED, ONE_SIDED, Case, model_of
from benchmarks.models.table import Table
from epsc import driver
from epsc.api.running import runner
from epsc.bench.contender import Contender
from epsc.bench.measure import measure
from epsc.bench.ranks import Ranks

LIMIT = 1e-2
ROOT = Path(__file__).parents[2]


def nearest(made: Tensor, *wanted: Tensor) -> float:
    """The relative error of all rows, each against whichever of `wanted` it is nearer to."""
    rows, many = made.flatten(0, -2).float(), [each.flatten(0, -2).float() for each in wanted]
    if not bool(rows.isfinite().all()):
        return float("inf")
    off = torch.stack([(rows - each).square().sum(-1) for each in many]).amin(0)
    return float((off.sum() / many[-1].square().sum()).sqrt())


def from_file(case: Case, ranks: Ranks, weights: dict[str, Tensor], most: int, small: bool) -> nn.Module:
    """The layer of the `.eps` file, by the schedule that the block is compiled with, and its weights."""
    source = driver.read(ROOT / "examples" / case.file)
    text = source.text + f"\nschedule given {{ {ONE_SIDED.format(case.beside[1])} }}\n"
    defines = {"ep": str(ranks.world), "tokens": str(most)}
    if small:
        defines |= {"hidden": "64", "width": "32", "experts": "16", "top_k": "4", "groups": "2"}
    layer = driver.understand(driver.decode(case.file, text.encode()), driver.Options(defines))
    program = driver.write(driver.plan(layer, "given"))
    made: nn.Module = runner(program, dist.group.WORLD if ranks.world > 1 else None, ranks.device, DTYPE).layer
    start, other = case.rename
    made.load({(other + n.removeprefix(start) if start and n.startswith(start) else n): w for n, w in weights.items()})
    return made


def block(case: Case, ranks: Ranks, table: Table, loads: list[int], small: bool, rounds: int) -> None:
    """A block: compiled, from its file, and by transformers; checked and timed."""
    model = model_of(case.family, {**(case.small if small else case.config), "num_hidden_layers": 1}, ranks.device)
    own = model.model.layers[0].mlp
    hidden, most = model.config.hidden_size, max(loads)
    group = dist.group.WORLD if ranks.world > 1 else None
    example = torch.zeros(2, 4, hidden, dtype=DTYPE, device=ranks.device)
    schedule = ONE_SIDED.format(case.beside[0])
    start = time.monotonic()
    compiled = epsc.compile(own, group, schedule, (1, most), example_inputs=example)
    took = time.monotonic() - start
    lifted = compiled.traced[1]
    for note in lifted.notes:
        table.lines.append(f"note: {case.name}: {note}")
    whole = {weight.name: weight.read(dict(own.named_parameters()).__getitem__) for weight in lifted.weights}
    written = from_file(case, ranks, whole, most, small)
    del whole
    exact = copy.deepcopy(own).float()
    cuda = ranks.device.type == "cuda"
    for tokens in loads:
        torch.manual_seed(100 * tokens + ranks.rank)
        inputs = [torch.randn(max(1, tokens // 1024), min(tokens, 1024), hidden, device=ranks.device) for _ in range(2)]
        inputs = [x.to(DTYPE) for x in inputs]
        flat = {x.data_ptr(): x.flatten(0, 1) for x in inputs}
        calls: dict[str, Callable[[Tensor], Tensor]] = {
            "transformers, grouped_mm, no EP": own,
            "epsc.compile": compiled,
            f"{case.file}": lambda x, flat=flat: written(flat[x.data_ptr()]).view(x.shape),
        }
        if cuda:
            graph, twin = epsc.capture(compiled, inputs[0]), written.capture(flat[inputs[0].data_ptr()])
            calls["epsc.compile, CUDA graph"] = graph
            calls[f"{case.file}, CUDA graph"] = lambda x, f=flat, t=twin: t(f[x.data_ptr()]).view(x.shape)
        errors = {}
        with torch.no_grad():
            own.experts.config._experts_implementation = "eager"
            wanted = [(own(x), exact(x.float())) for x in inputs]
            own.experts.config._experts_implementation = GROUPED
            for name, call in calls.items():
                errors[name] = max(nearest(call(x), *both) for x, both in zip(inputs, wanted, strict=True))
                errors[name] = max(ranks.everyone(errors[name]))
                if not errors[name] <= LIMIT:
                    table.fail(f"{case.name}, {tokens} tokens: {name} is off by {errors[name]:.2e}")
            del wanted
            contenders = [Contender(name, call) for name, call in calls.items()]
            samples = measure(ranks, contenders, inputs, rounds, 3)
        head = f"{case.name} block, {tokens} tokens per rank, {ranks.world} ranks (read and compiled in {took:.0f} s)"
        table.figures(head, samples, errors, dict.fromkeys(calls, tokens * ranks.world))
