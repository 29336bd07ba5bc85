"""Kernels beside the torch ops that they replace, on one GPU: `python -m benchmarks.kernels`.

Every kernel is checked on fresh random numbers against fp32 arithmetic, with outputs full of NaN before. A time is the
median of at least 15 launches between two events; the operands are those of a layer, several times the L2 cache, and
launches take turns on two sets of them where they are small.

Products are cut as programs without a table of tiles do it; `benchmarks.tiles` finds the fastest ways.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from epsc.codegen.triton_expert_gemm import expert_gemm
from epsc.codegen.triton_kernels import activation, head, scatter_rows, tiles, weighted_sum
from epsc.ir.attrs import Act, ActAttrs

SWIGLU = ActAttrs(Act.SWIGLU)
PAIRS = ActAttrs(Act.SWIGLU, 7.0, 1.702, 1.0, interleaved=True)
BF16 = torch.bfloat16
LIMIT = 1e-2
IMPORTS = """from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

"""


@dataclass(frozen=True)
class Case:
    """An expert product: `rows` in all, `experts` of [wide, deep]."""

    name: str
    experts: int
    rows: int
    wide: int
    deep: int
    gated: bool = False
    even: bool = False


CASES = (
    *(Case("DeepSeek-V2 up", 160, n, 3072, 5120, True) for n in (6144, 24576, 49152)),
    *(Case("DeepSeek-V2 down", 160, n, 5120, 1536) for n in (6144, 24576, 49152)),
    Case("DeepSeek-V2 up, half", 80, 51200, 3072, 5120, True, even=True),
    Case("DeepSeek-V2 down, half", 80, 51200, 5120, 1536, even=True),
    *(Case("Qwen3-30B up", 128, n, 1536, 2048, True) for n in (16384, 131072)),
    *(Case("Qwen3-30B down", 128, n, 2048, 768) for n in (16384, 131072)),
    Case("Mixtral up", 4, 16384, 28672, 4096, True),
    Case("Mixtral down", 4, 16384, 4096, 14336),
    Case("DBRX up", 8, 16384, 21504, 6144, True),
    Case("DBRX down", 8, 16384, 6144, 10752),
)


def load(text: str) -> ModuleType:
    """The module of kernels; Triton reads their source, so it must be a file."""
    folder = Path(tempfile.mkdtemp())
    path = folder / "kernels.py"
    path.write_text(IMPORTS + head() + text)
    spec = importlib.util.spec_from_file_location(f"kernels_{folder.name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def milliseconds(launch: Callable[[], object]) -> float:
    """The median of one."""
    return in_turns({"": launch})[""]


def in_turns(launches: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """The median of each. They take turns, each round in another order: products make a GPU so hot that it slows
    down, and what is measured later would seem slower."""
    for launch in launches.values():
        launch()
        launch()
    marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in launches}
    names = list(launches)
    for i in range(rounds):
        at = i * len(names) // rounds
        for name in names[at:] + names[:at]:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            launches[name]()
            end.record()
            marks[name].append((start, end))
    torch.cuda.synchronize()
    return {name: median(start.elapsed_time(end) for start, end in each) for name, each in marks.items()}


def error(got: Tensor, right: Tensor) -> float:
    """Relative to the norm; NaN where something was not written."""
    off, all_of_it = 0.0, 0.0
    for a, b in zip(got.split(4096), right.split(4096), strict=True):
        off += float((a.float() - b.float()).square().sum())
        all_of_it += float(b.float().square().sum())
    return (off / all_of_it) ** 0.5


def nan(*shape: int) -> Tensor:
    return torch.full(shape, torch.nan, dtype=BF16, device="cuda")


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=BF16, device="cuda")


def turns(launch: Callable[[Any], object], sets: list[Any]) -> Callable[[], object]:
    """The same launch on one set of operands after the other."""
    following = itertools.cycle(sets)
    return lambda: launch(next(following))


@dataclass
class Table:
    """Results: printed as they come, and kept."""

    found: list[dict[str, Any]]

    def row(self, name: str, ms: float, work: float, unit: str, err: float, torch_ms: float, note: str) -> None:
        """`work`: bytes, or operations."""
        rate = work / ms / (1e6 if unit == "GB/s" else 1e9)
        fault = "" if err <= LIMIT else "  WRONG"
        print(
            f"{name:58} {ms:7.3f} ms {rate:7.0f} {unit:8} error {err:.1e}  torch {torch_ms:7.3f} ms"
            f"  x{torch_ms / ms:5.2f}  {note}{fault}",
            flush=True,
        )
        self.found.append(dict(name=name, ms=ms, rate=rate, unit=unit, error=err, torch_ms=torch_ms, note=note))


def rows_kernels(table: Table) -> None:
    """The weighted sum and the moves."""
    kernels = load(weighted_sum() + scatter_rows())
    layers = (("DeepSeek-V2", 8192, 6, 5120), ("Qwen3-30B", 16384, 8, 2048), ("DeepSeek-V2", 512, 6, 5120))
    for name, tokens, k, hidden in layers:
        count = tokens * k
        sets = []
        for _ in range(2):
            weights = torch.rand(tokens, k, device="cuda")
            sets.append((random(count, hidden), torch.randperm(count, device="cuda"), weights, nan(tokens, hidden)))
        rows, place, weights, out = sets[0]
        addend = random(tokens, hidden)
        right = torch.zeros(tokens, hidden, device="cuda")
        for j in range(k):
            right += weights[:, j, None] * rows[place.view(tokens, k)[:, j]].float()
        moved = tokens * hidden * 2 * (k + 1)
        err = error(kernels.fused_weighted_sum(rows, place, weights, out), right)
        with_addend = kernels.fused_weighted_sum(rows, place, weights, nan(tokens, hidden), addend)
        err_added = error(with_addend, right + addend.float())

        def bag(each: Any) -> Tensor:
            rows, place, weights, _ = each
            index = place.view_as(weights)
            return F.embedding_bag(index, rows, per_sample_weights=weights.to(rows.dtype), mode="sum")

        def bag_and_add(each: Any, addend: Tensor = addend) -> Tensor:
            return torch.add(bag(each), addend, out=each[3])

        ours = milliseconds(turns(lambda s: kernels.fused_weighted_sum(*s), sets))
        table.row(f"weighted_sum {name} T={tokens}", ours, moved, "GB/s", err, milliseconds(turns(bag, sets)), "")
        ours = milliseconds(turns(lambda s, a=addend: kernels.fused_weighted_sum(*s, a), sets))
        theirs = milliseconds(turns(bag_and_add, sets))
        moved += tokens * hidden * 2
        table.row(f"weighted_sum + addend {name} T={tokens}", ours, moved, "GB/s", err_added, theirs, "")

        back = [(rows, place, nan(count, hidden)) for rows, place, *_ in sets]
        moved = count * hidden * 4
        err = error(kernels.scatter_rows(*back[0])[place], rows)
        ours = milliseconds(turns(lambda s: kernels.scatter_rows(*s), back))
        theirs = milliseconds(turns(lambda s: s[2].index_copy_(0, s[1], s[0]), back))
        table.row(f"scatter_rows {name} {count} rows", ours, moved, "GB/s", err, theirs, "")


def halves(x: Tensor, out: Tensor) -> Tensor:
    """What programs do in torch."""
    gate, up = x.chunk(2, dim=-1)
    return torch.mul(F.silu(gate), up, out=out)


def pairs(x: Tensor, out: Tensor) -> Tensor:
    """The same for GPT-OSS."""
    gate, up = x[:, ::2].clamp(max=7.0), x[:, 1::2].clamp(-7.0, 7.0)
    return torch.mul(gate * torch.sigmoid(1.702 * gate), up + 1.0, out=out)


def activation_kernels(table: Table) -> None:
    """Activations from [rows, 2 * width] to [rows, width]."""
    kernels = load(activation("halves", SWIGLU) + activation("pairs", PAIRS) + activation("relu2", ActAttrs(Act.RELU2)))
    for name, count, width in (("DeepSeek-V2", 49152, 1536), ("Qwen3-30B", 131072, 768), ("Mixtral", 16384, 14336)):
        sets = [(random(count, 2 * width), nan(count, width)) for _ in range(2)]
        for form, in_torch in (("halves", halves), ("pairs", pairs)):
            ours = getattr(kernels, form)
            x, out = sets[0]
            out.fill_(torch.nan)
            ours(x, out)
            err = error(out, in_torch(x.float(), torch.empty(count, width, device="cuda")))
            ms = milliseconds(turns(lambda s, f=ours: f(*s), sets))
            theirs = milliseconds(turns(lambda s, f=in_torch: f(*s), sets))
            table.row(f"swiglu of {form} {name} {count} x {width}", ms, count * width * 6, "GB/s", err, theirs, "")
    sets = [(random(49152, 3072), nan(49152, 3072)) for _ in range(2)]
    kernels.relu2(*sets[0])
    err = error(sets[0][1], sets[0][0].float().relu().square())
    ms = milliseconds(turns(lambda s: kernels.relu2(*s), sets))
    theirs = milliseconds(turns(lambda s: torch.square(torch.relu(s[0]), out=s[1]), sets))
    table.row("relu2 49152 x 3072", ms, 49152 * 3072 * 4, "GB/s", err, theirs, "")


def products() -> dict[bool, Callable[..., Tensor]]:
    """The expert product, plain and gated."""
    return {gated: load(tiles() + expert_gemm("gemm", SWIGLU if gated else None)).gemm for gated in (False, True)}


def reference(case: Case, rows: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
    """In fp32, of a part of the columns: enough to see what is wrong, in a fraction of the time."""
    made = []
    step = 64 if case.wide * case.deep > 2**25 else 1
    for part, each in zip(rows.float().split(counts), weight, strict=True):
        if case.gated:
            gate, up = (part @ half[::step].float().T for half in each.chunk(2))
            made.append(F.silu(gate) * up)
        else:
            made.append(part @ each[::step].float().T)
    return torch.cat(made)


def gemms(table: Table, case: Case, gemm: Callable[..., Tensor]) -> None:
    """One expert product beside grouped_mm and, if it is gated, the activation that programs do after it."""
    grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
    weight = random(case.experts, case.wide, case.deep).mul_(case.deep**-0.5)
    chosen = torch.multinomial(torch.ones(case.experts), case.rows, replacement=True).bincount(minlength=case.experts)
    counts = [case.rows // case.experts] * case.experts if case.even else chosen.tolist()
    ends = torch.tensor(counts).cumsum(0).to("cuda", torch.int32)
    rows = random(case.rows, case.deep)
    width = case.wide // 2 if case.gated else case.wide
    right = reference(case, rows, weight, counts)
    flops = 2.0 * case.rows * case.wide * case.deep
    launches: dict[str, Callable[[], object]] = {"grouped_mm": lambda: grouped_mm(rows, weight.mT, offs=ends)}
    if case.gated:
        made, out = grouped_mm(rows, weight.mT, offs=ends), nan(case.rows, width)
        launches["activation"] = lambda: halves(made, out)
    padded = nan(case.rows + 256, width)
    errors = {}
    what = "as programs do"
    padded.fill_(torch.nan)
    gemm(rows, weight, ends, padded)
    errors[what] = error(padded[: case.rows, :: width // right.shape[1]], right)
    if not padded[case.rows :].isnan().all() or padded[: case.rows].isnan().any():
        errors[what] = float("nan")
    launches[what] = functools.partial(gemm, rows, weight, ends, padded)
    if "half" in case.name:
        for programs in (132, 124, 116, 108, 100):
            what = f"on {programs} SMs"
            errors[what] = errors["as programs do"]
            launches[what] = functools.partial(gemm, rows, weight, ends, padded, programs)
    times = in_turns(launches)
    theirs = times["grouped_mm"] + times.get("activation", 0.0)
    note = f"grouped_mm alone {times['grouped_mm']:.3f} ms, {flops / times['grouped_mm'] / 1e9:.0f}"
    for what, err in errors.items():
        name = f"{case.name} {case.experts} x {case.rows // case.experts} {what}"
        table.row(name, times[what], flops, "TFLOP/s", err, theirs, note)


def main() -> int:
    """Everything, or what was asked for."""
    parser = argparse.ArgumentParser(description="Kernels beside the torch ops that they replace.")
    parser.add_argument("--only", default="", help="expert products with this in their name")
    parser.add_argument("--no-rows", action="store_true", help="leave out all but expert products")
    parser.add_argument("--json", metavar="FILE", help="write the results")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, seed {torch.seed()}")
    start = time.monotonic()
    table = Table([])
    if not args.no_rows:
        rows_kernels(table)
        activation_kernels(table)
    gemm = products()
    for case in CASES:
        if args.only in case.name:
            gemms(table, case, gemm[case.gated])
    if args.json:
        Path(args.json).write_text(json.dumps(table.found, indent=1) + "\n")
    print(f"{time.monotonic() - start:.0f} s")
    return 0 if all(each["error"] <= LIMIT for each in table.found) else 1


if __name__ == "__main__":
    sys.exit(main())
