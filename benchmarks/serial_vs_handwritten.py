"""Compiled programs beside the hand-written layers: `torchrun ... -m benchmarks.serial_vs_handwritten build/gpu`.

Takes a folder that `benchmarks.compile_all` wrote, some programs of such a folder, or a .eps file where epsc can be
imported. Every contender gets the same weights and the same inputs, is checked against an fp32 reference (with every
new tensor full of NaN before it is written), and is timed with the others in turns: in each round each of them runs
over all inputs once, in an order that moves on from round to round. A figure is the median over rounds of the slowest
rank; everything is measured twice, so that the table shows what is noise.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.handwritten import (
    SHARDED,
    SUMS,
    AllGather,
    AllToAll,
    Layer,
    Replicated,
    Shape,
    error,
    make_weight,
    make_weights,
    reference,
    sort_by_expert,
)

HANDWRITTEN: dict[str, type[Layer]] = {"hand a2a": AllToAll, "hand gather": AllGather, "hand no-ep": Replicated}
YARDSTICK = "hand a2a"
LIMITS = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
START = time.monotonic()


class Poison(TorchDispatchMode):
    """Every tensor of numbers that is made without a value is full of NaN, whatever stream it is made on."""

    FRESH = (
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_strided.default,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.new_empty.default,
        torch.ops.aten.new_empty_strided.default,
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.fill_(torch.nan) if func in self.FRESH and made.is_floating_point() else made


@dataclass
class Ranks:
    """This rank among the others, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1
    control: Any = None
    """A gloo group: what ranks say to each other here must not touch the device."""

    @staticmethod
    def join(device: str | None, patience: float) -> Ranks:
        """As torchrun started us; alone, and without torch.distributed, where it did not or started only one."""
        world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        mine = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(mine)
        if world == 1:
            return Ranks(mine)
        limit = timedelta(seconds=patience)
        if kind == "cuda":
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=limit)  # as emitted programs do
        else:
            dist.init_process_group("gloo", timeout=limit)
        return Ranks(mine, dist.get_rank(), world, dist.new_group(backend="gloo", timeout=limit))

    def everyone(self, value: Any) -> list[Any]:
        """The value of each rank, on each rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values

    def settle(self) -> None:
        """All ranks are here, and their devices are idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.world > 1:
            dist.barrier(group=self.control)

    def say(self, text: str = "") -> None:
        if self.rank == 0:
            print(text, flush=True)

    def time(self, forwards: Sequence[Callable[[], object]]) -> float:
        """Milliseconds of one of `forwards` on this rank, issued one after the other as in a model."""
        self.settle()
        if self.device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for forward in forwards:
                forward()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / len(forwards)
        before = time.perf_counter()
        for forward in forwards:
            forward()
        return (time.perf_counter() - before) * 1e3 / len(forwards)

    def median(self, samples: list[float]) -> float:
        """Of each sample the slowest rank, of those the median."""
        return median(map(max, zip(*self.everyone(samples), strict=True)))


@dataclass
class Contender:
    name: str
    layer: nn.Module
    errors: dict[int, float] = field(default_factory=dict)
    """Tokens -> relative error, of the worst rank."""


@dataclass
class Journal:
    """What was found so far, kept in a file: a run that dies tells how far it came, and at what."""

    path: Path | None
    found: dict[str, Any]

    def at(self, what: str) -> None:
        self.found["at"] = what
        self.save()

    def save(self) -> None:
        if self.path:
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.found, indent=1) + "\n")
            part.replace(self.path)


# --- contenders -------------------------------------------------------------------------------------------------------


def programs_of(paths: list[Path], ep: int, scratch: Path) -> tuple[Shape, dict[str, Path]]:
    """The layer, and name -> program for `ep` ranks."""
    shape: Shape | None = None
    found: dict[str, Path] = {}
    for path in paths:
        folder, only = path, None
        if path.suffix == ".eps":
            from benchmarks.compile_all import CONTENDERS, compile_all  # noqa: PLC0415 - needs the compiler

            folder = scratch / path.stem
            compile_all(path, folder, [ep], list(CONTENDERS), {})
        elif path.suffix == ".py":
            folder, only = path.parent, path.name
        manifest = json.loads((folder / "manifest.json").read_text())
        mine = Shape(**manifest["layer"])
        if shape is not None and mine != shape:
            raise SystemExit(f"{path} is another layer than the programs before it")
        shape = mine
        for program in manifest["programs"]:
            if program["ep"] == ep and only in (None, program["file"]):
                found[program["name"]] = folder / program["file"]
    assert shape is not None
    return shape, found


def load_program(path: Path, weights: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Import an emitted program, make its layer and fill it."""
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    classes = [
        made
        for _, made in inspect.getmembers(module, inspect.isclass)
        if issubclass(made, nn.Module) and made.__module__ == spec.name and hasattr(made, "load")
    ]
    if len(classes) != 1:
        raise RuntimeError(f"{path} has {len(classes)} layers with `load`, not one")
    layer: nn.Module = classes[0](device=device, dtype=dtype)
    layer.load(weights)
    return layer.eval()


def attempt(ranks: Ranks, name: str, what: Callable[[], Any]) -> Any:
    """What `what` returns, or None where it failed on some rank, with the reason printed."""
    made, reason = None, ""
    try:
        made = what()
    except Exception as fault:
        reason = "".join(traceback.format_exception(fault)[-3:])
    reasons = ranks.everyone(reason)
    for rank, each in enumerate(reasons):
        if each and each not in reasons[:rank]:
            ranks.say(f"{name}: left out, because on rank {rank}\n{each}")
    return None if any(reasons) else made


def check(layer: nn.Module, x: Tensor, other: Tensor, wanted: Tensor, clear: Tensor) -> float:
    """The relative error of layer(x) on the tokens that are clear. Raises where a layer does more than it should."""
    before = x.clone()
    with Poison():
        y = layer(x)
        kept = y.clone()
        layer(other)
        if not torch.equal(y.nan_to_num(), kept.nan_to_num()):
            raise RuntimeError("the next forward writes into what this one returned")
        again = layer(x)  # memory that a layer keeps is not fresh any more
    if not torch.equal(x, before):
        raise RuntimeError("a forward writes into its input")
    return max(error(y[clear], wanted[clear]), error(again[clear], wanted[clear]))


# --- measuring --------------------------------------------------------------------------------------------------------


def fastest_sum(ranks: Ranks, shape: Shape, tokens: int, dtype: torch.dtype) -> tuple[str, dict[str, float]]:
    """The way to sum weighted copies that is fastest here, and milliseconds of each."""
    rows = torch.randn(tokens * shape.top_k, shape.hidden, device=ranks.device).to(dtype)
    order = torch.randperm(len(rows), device=ranks.device)
    weights = torch.rand(tokens, shape.top_k, device=ranks.device)
    took = {}
    for name, way in SUMS.items():
        call = [lambda way=way: way(rows, order, weights)] * 4
        ranks.time(call)
        took[name] = ranks.median([ranks.time(call) for _ in range(5)])
    return min(took, key=lambda name: took[name]), took


def transfers(layer: AllToAll, inputs: list[Tensor]) -> list[Callable[[], None]]:
    """For each input: both all2alls of its rows, there and back, and nothing else."""
    calls = []
    for x in inputs:
        leaving = sort_by_expert(layer.route(x)[0], layer.shape.experts)[1]
        arriving = torch.empty_like(leaving)
        layer.all_to_all(arriving, leaving)
        goes, comes = torch.stack((leaving, arriving)).view(2, layer.ep, layer.local).sum(-1).tolist()
        rows, received = x.new_empty(sum(goes), x.shape[1]).normal_(), x.new_empty(sum(comes), x.shape[1])

        def both(rows: Tensor = rows, received: Tensor = received, goes: Any = goes, comes: Any = comes) -> None:
            layer.all_to_all(received, rows, comes, goes)
            layer.all_to_all(rows, received, goes, comes)

        calls.append(both)
    return calls


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product."""
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    alone = Ranks(device)
    alone.time([lambda: a @ b] * 3)
    return 2.0 * n**3 / (median(alone.time([lambda: a @ b] * 5) for _ in range(3)) * 1e-3)


def measure(
    ranks: Ranks, contenders: list[Contender], inputs: list[Tensor], rounds: int, warm_up: int
) -> dict[str, float]:
    """Milliseconds of a forward for each contender."""
    samples: dict[str, list[float]] = {c.name: [] for c in contenders}
    for i in range(warm_up + rounds):
        shift = i % len(contenders)
        for c in (*contenders[shift:], *contenders[:shift]):
            took = ranks.time([lambda c=c, x=x: c.layer(x) for x in inputs])
            if i >= warm_up:
                samples[c.name].append(took)
    return {name: ranks.median(each) for name, each in samples.items()}


def kernels(ranks: Ranks, contender: Contender, inputs: list[Tensor], most: int = 25) -> list[dict[str, Any]]:
    """The kernels of a forward on this rank that take longest: name, launches and milliseconds per forward."""
    ranks.settle()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for x in inputs:
            contender.layer(x)
        ranks.settle()
    found = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)[:most]
    return [
        {
            "kernel": e.key[:160],
            "launches": e.count / len(inputs),
            "ms": round(e.self_device_time_total / 1e3 / len(inputs), 4),
        }
        for e in found
    ]


# --- the table --------------------------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """What was measured, for people."""
    lines = [
        "{layer}: {ranks} x {device}, {dtype}, torch {torch}; ms per forward, slowest rank, median of {rounds} rounds,"
        " measured twice".format(**found),
        f"sum of copies: {', '.join(f'{name} {ms:.3f} ms' for name, ms in found['sums'].items())}"
        f" (largest load; hand-written layers use the fastest)",
    ]
    for load in found["loads"]:
        runs = load["runs"]
        names = list(runs[0])
        ms = {name: min(run[name] for run in runs) for name in names}
        best = min(ms[name] for name in names if name in HANDWRITTEN)
        lines += ["", f"{load['tokens']} tokens per rank; GEMM floor {load['floor_ms']:.2f} ms"]
        if load["transfer_ms"] is not None:
            lines[-1] += f"; both all2alls alone {load['transfer_ms']:.2f} ms"
        heads = [*(f"run {i + 1}" for i in range(len(runs))), "vs a2a", "vs best", "hidden", "error"]
        lines.append(f"{'':14}" + "".join(f"{head:>9}" for head in heads))
        for name in names:
            hidden = "-"
            if load["transfer_ms"] and "serial" in ms and name not in (*HANDWRITTEN, "serial"):
                hidden = f"{(ms['serial'] - ms[name]) / load['transfer_ms']:.0%}"
            cells = [f"{run[name]:.3f}" for run in runs]
            cells += [f"{ms[YARDSTICK] / ms[name]:.2f}x" if YARDSTICK in ms else "-", f"{best / ms[name]:.2f}x"]
            cells += [hidden, f"{load['errors'][name]:.1e}"]
            lines.append(f"{name:14}" + "".join(f"{cell:>9}" for cell in cells))
    lines += [
        "",
        "vs: how many times as fast as the hand-written all2all layer, and as the best hand-written one (lower of the",
        "runs each); hidden: (serial program - this) / both all2alls alone.",
    ]
    return "\n".join([*lines, *found["notes"]])


# --- all of it --------------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", help="a folder of compile_all, programs in it, or a .eps file")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 8192], help="per rank")
    parser.add_argument("--only", nargs="+", help="programs by name; all by default")
    parser.add_argument("--skip", nargs="+", default=[], help="programs by name")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--inputs", type=int, default=4, help="different inputs, which take turns")
    parser.add_argument("--runs", type=int, default=2, help="how often all is measured")
    parser.add_argument("--kernels", action="store_true", help="also profile each contender at the largest load")
    parser.add_argument("--budget", type=float, default=480, help="seconds after which nothing new is begun")
    parser.add_argument("--patience", type=float, default=100, help="seconds until a transfer counts as stuck")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    ranks = Ranks.join(given.device, given.patience)
    dtype = torch.bfloat16 if ranks.device.type == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as scratch:
        shape, paths = programs_of(given.paths, ranks.world, Path(scratch))
        wanted = [n for n in (given.only or paths) if n not in given.skip]
        if strangers := [n for n in wanted if n not in paths]:
            raise SystemExit(
                f"no program {', '.join(strangers)} for {ranks.world} rank(s); there are {', '.join(paths)}"
            )
        found: dict[str, Any] = {
            "layer": shape.name,
            "ranks": ranks.world,
            "device": torch.cuda.get_device_name() if ranks.device.type == "cuda" else "cpu",
            "dtype": str(dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "rounds": given.rounds,
            "loads": [],
            "notes": [],
            "command": sys.argv[1:],
        }
        journal = Journal(given.json if ranks.rank == 0 else None, found)
        with torch.no_grad():
            run(given, ranks, dtype, shape, {n: paths[n] for n in wanted}, journal)
    found.pop("at", None)
    journal.save()
    ranks.say("\n" + table(found))
    if ranks.world > 1:
        ranks.settle()
        dist.destroy_process_group()


def run(
    given: argparse.Namespace,
    ranks: Ranks,
    dtype: torch.dtype,
    shape: Shape,
    paths: dict[str, Path],
    journal: Journal,
) -> None:
    """Make, check and measure all contenders, and note what was found."""
    found, device = journal.found, ranks.device
    sum_by, found["sums"] = fastest_sum(ranks, shape, max(given.tokens), dtype)
    sum_by = ranks.everyone(sum_by)[0]
    ranks.say(f"{time.monotonic() - START:5.0f} s  sums of copies: {found['sums']}")

    # Every expert, because one hand-written layer holds them all; the others hold views of their own.
    weights = make_weights(shape, range(shape.experts), dtype, device)
    local = shape.experts // ranks.world
    mine = slice(ranks.rank * local, (ranks.rank + 1) * local)
    own = {name: weight[mine] if name in SHARDED else weight for name, weight in weights.items()}
    contenders = [
        Contender(name, kind(shape, own if kind.sharded else weights, sum_by=sum_by))
        for name, kind in HANDWRITTEN.items()
        if ranks.world > 1 or kind is not AllGather
    ]
    for name, path in paths.items():
        journal.at(name)
        layer = attempt(ranks, name, lambda path=path: load_program(path, own, device, dtype))
        if layer is not None:
            contenders.append(Contender(name, layer))

    generator = torch.Generator(device).manual_seed(1000 + ranks.rank)

    def fresh(tokens: int) -> Tensor:
        return torch.randn(tokens, shape.hidden, generator=generator, device=device).to(dtype)

    pairs = [(fresh(tokens), fresh(tokens)) for tokens in given.tokens]
    made = reference(shape, [x for x, _ in pairs], lambda name, e: make_weight(shape, name, e, dtype, device))
    for tokens, (x, other), (wanted, clear) in zip(given.tokens, pairs, made, strict=True):
        unclear = sum(ranks.everyone(int((~clear).sum())))
        if unclear > max(4, 0.02 * tokens * ranks.world):
            raise SystemExit(f"{unclear} tokens have no clear choice of experts: made-up weights are no good")
        for c in list(contenders):
            journal.at(c.name)
            off = attempt(ranks, c.name, lambda c=c, x=x, o=other, w=wanted, k=clear: check(c.layer, x, o, w, k))
            worst = max(ranks.everyone(off)) if off is not None else float("inf")
            c.errors[tokens] = worst
            if worst > LIMITS[dtype]:
                if off is not None:
                    ranks.say(f"{c.name}: left out: its error is {worst:.2e} at {tokens} tokens")
                found["notes"].append(f"{c.name} was left out: error {worst:.2e} at {tokens} tokens")
                contenders.remove(c)
    del pairs, made
    journal.at("")
    ranks.say(f"{time.monotonic() - START:5.0f} s  checked: {', '.join(c.name for c in contenders)}")

    rate = ceiling(device, dtype)
    found["gemm_ceiling_tflops"] = rate / 1e12
    for tokens in sorted(given.tokens):
        inputs = [fresh(tokens) for _ in range(given.inputs)]
        load: dict[str, Any] = {
            "tokens": tokens,
            "floor_ms": shape.flops(tokens) / rate * 1e3,
            "transfer_ms": None,
            "errors": {c.name: c.errors[tokens] for c in contenders},
            "runs": [],
        }
        if ranks.world > 1:
            first = contenders[0].layer
            assert isinstance(first, AllToAll)
            calls = transfers(first, inputs)
            ranks.time(calls)
            load["transfer_ms"] = ranks.median([ranks.time(calls) for _ in range(9)])
            del calls
        for i in range(given.runs):
            if ranks.everyone(time.monotonic() - START > given.budget)[0]:
                note = f"{tokens} tokens, run {i + 1}: not begun, the time was up"
                found["notes"].append(note)
                break
            journal.at("")
            load["runs"].append(measure(ranks, contenders, inputs, given.rounds, 2 if i else 4))
            if i == 0:
                found["loads"].append(load)
            took = ", ".join(f"{name} {ms:.3f}" for name, ms in load["runs"][-1].items())
            ranks.say(f"{time.monotonic() - START:5.0f} s  {tokens} tokens, run {i + 1}: {took}")
        if given.kernels and device.type == "cuda" and tokens == max(given.tokens) and load["runs"]:
            load["kernels"] = {}
            for c in contenders:
                journal.at(c.name)
                profiled = attempt(ranks, f"{c.name}, profile", lambda c=c, i=inputs: kernels(ranks, c, i))
                if profiled:
                    load["kernels"][c.name] = profiled
            journal.at("")


if __name__ == "__main__":
    main()
