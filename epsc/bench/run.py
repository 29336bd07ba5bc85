"""One comparison on ranks that torchrun started: `torchrun ... -m epsc.bench FOLDER`, a folder of compiled programs.

Every contender gets the same weights, inputs and routings in one process group, is checked against an fp32 reference
(with every new tensor full of NaN before it is written), and is timed with the others in turns.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from epsc.bench.alone import Alone, alone
from epsc.bench.contender import Contender, check
from epsc.bench.floor import Ceilings, ceilings, floor
from epsc.bench.journal import Journal
from epsc.bench.layer import Given, Manifest, contenders_by_hand, contenders_of
from epsc.bench.loads import BY_HAND, FOR_SEVERAL_RANKS, TOKENS, WORKLOADS
from epsc.bench.measure import Figures, all2alls, fastest_sum, kernels, measure
from epsc.bench.ranks import Ranks
from epsc.bench.reference import LIMITS
from epsc.bench.soak import soak
from epsc.bench.table import table
from epsc.bench.workloads import Workloads

INPUTS = 4
"""Different inputs, which take turns."""
START = time.monotonic()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what benchmarks.compile_all or epsc bench --keep wrote")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="per rank")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["random"])
    parser.add_argument("--only", nargs="+", help=f"contenders by name, {', '.join(BY_HAND)} among them")
    parser.add_argument("--skip", nargs="+", default=[], help="contenders by name")
    parser.add_argument("--rounds", type=int, default=15, help="of each run")
    parser.add_argument("--runs", type=int, default=2, help="how often all is measured")
    parser.add_argument("--forwards", type=int, default=0, help="soak: so many forwards instead of measuring")
    parser.add_argument("--graph", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--steps", action=argparse.BooleanOptionalAction, default=True, help="also run each step alone")
    parser.add_argument("--kernels", action="store_true", help="also profile each contender at the largest load")
    parser.add_argument("--budget", type=float, default=480, help="seconds after which nothing new is begun")
    parser.add_argument("--patience", type=float, default=100, help="seconds until a transfer counts as stuck")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-table", action="store_true", help="print no table: whoever started this does")
    return parser.parse_args()


@dataclass
class Session:
    """Who takes part, and what they are given."""

    args: argparse.Namespace
    ranks: Ranks
    given: Given
    workloads: Workloads
    journal: Journal
    contenders: list[Contender]
    rates: Ceilings

    def late(self) -> bool:
        return any(self.ranks.everyone(time.monotonic() - START > self.args.budget))

    def say(self, text: str) -> None:
        """Progress, beside the results."""
        if self.ranks.rank == 0:
            print(f"{time.monotonic() - START:5.0f} s  {text}", file=sys.stderr, flush=True)

    def fails(self, c: Contender, where: str, reason: str) -> None:
        """The contender takes no further part."""
        self.contenders.remove(c)
        self.say(self.journal.left_out(c.name, where, reason))


def main() -> None:
    args = arguments()
    ranks = Ranks.join(args.device, args.patience)
    dtype = torch.bfloat16 if ranks.device.type == "cuda" else torch.float32
    manifest = Manifest.read(args.folder)
    found: dict[str, Any] = {
        "layer": manifest.layer,
        "ranks": ranks.world,
        "device": torch.cuda.get_device_name() if ranks.device.type == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "rounds": args.rounds,
        "runs": args.runs,
        "cells": [],
        "soaks": [],
        "notes": [],
        "failed": [],
        "command": sys.argv[1:],
    }
    journal = Journal(args.json if ranks.rank == 0 else None, found)
    with torch.no_grad():
        session = begin(args, ranks, dtype, manifest, journal)
        for workload in args.workload:
            if workload in FOR_SEVERAL_RANKS and ranks.world == 1:
                journal.note(f"{workload} needs at least 2 ranks")
            elif args.forwards:
                soaked(session, workload)
            else:
                for tokens in sorted(args.tokens):
                    cell(session, workload, tokens)
    found.pop("at", None)
    journal.save()
    if ranks.rank == 0 and not args.no_table:
        print(table(found), flush=True)
    if ranks.world > 1:
        ranks.settle()
        dist.destroy_process_group()


def begin(args: argparse.Namespace, ranks: Ranks, dtype: torch.dtype, manifest: Manifest, journal: Journal) -> Session:
    """Make the weights and the contenders."""
    found, programs = journal.found, manifest.of(ranks.world)
    known = [*(BY_HAND if manifest.shape else ()), *programs]
    if strangers := [name for name in args.only or () if name not in known]:
        raise SystemExit(f"no contender {', '.join(strangers)} on {ranks.world} rank(s); there are {', '.join(known)}")
    names = [name for name in args.only or known if name not in args.skip]
    if not manifest.shape and not programs:
        raise SystemExit(f"no program for {ranks.world} rank(s) in {args.folder}")
    if ranks.device.type == "cpu":
        journal.note("CPU ranks share cores: they show that plans are right, not how fast they are")
    if not manifest.shape:
        journal.note(f"no layers by hand: {manifest.unlike}")
    rates = ceilings(ranks, dtype)
    found["ceilings"] = {**asdict(rates), "link": rates.link if math.isfinite(rates.link) else None}
    given = Given(manifest, ranks, dtype)
    sum_by = "bag"
    if manifest.shape and set(names) & set(BY_HAND):
        sum_by, found["sums"] = fastest_sum(ranks, manifest.shape, max(args.tokens), dtype)
        sum_by = ranks.everyone(sum_by)[0]
    workloads = Workloads(manifest.router, given.raw, ranks.rank, ranks.world, dtype)
    session = Session(args, ranks, given, workloads, journal, [], rates)
    session.contenders += contenders_by_hand(given, ranks, sum_by, names, args.graph)
    for name in names:
        if name in programs:
            journal.at(name)
            made, reason = ranks.attempt(lambda p=programs[name]: contenders_of(given, ranks, p, args.graph))  # type: ignore[misc]
            if made is None:
                session.say(journal.left_out(name, "when it was made", reason))
            else:
                session.contenders += made
    session.contenders = [c for c in session.contenders if c.name not in args.skip]  # a graph has a name of its own
    session.say(f"made: {', '.join(c.name for c in session.contenders)}")
    return session


def cell(s: Session, workload: str, tokens: int) -> None:
    """One workload at one load: check every contender, then measure those that are right."""
    sizes = s.workloads.sizes(workload, tokens, INPUTS)
    made = [s.workloads.make(workload, size) for size in sizes]
    inputs = [x for x, _ in made]
    where = f"{workload}, {tokens} tokens"
    if s.late():
        s.journal.note(f"{where}: not begun, the time was up")
        return
    rows = s.workloads.achieved(made, s.ranks.everyone)
    errors = checked(s, inputs, where)
    if not s.contenders:
        return
    hidden, item = s.given.manifest.hidden, inputs[0].element_size()
    mean = sum(sizes) / len(sizes)
    least = floor(s.given.table, s.given.manifest.router, hidden, mean, s.ranks.world, item, s.rates)
    found: dict[str, Any] = {
        "workload": workload,
        "tokens": tokens,
        "sizes": sizes,
        "rows": rows.as_json(),
        "floor": least.as_json(),
        "all2alls_ms": all2alls(s.ranks, round(mean), s.given.manifest.router.top_k, hidden, s.given.dtype),
        "contenders": {},
    }
    samples: dict[str, list[list[float]]] = {c.name: [] for c in s.contenders}
    for i in range(s.args.runs):
        if i and s.late():
            s.journal.note(f"{where}: run {i + 1} not begun, the time was up")
            break
        s.journal.at("")
        for name, each in measure(s.ranks, s.contenders, inputs, s.args.rounds, 2 if i else 4).items():
            samples[name].append(each)
    steps: dict[int, Alone | None] = {}
    for c in s.contenders:
        figures = Figures.of(samples[c.name])
        if s.args.steps and id(c.layer) not in steps:
            steps[id(c.layer)] = apart(s, c, inputs, where)
        parts = steps.get(id(c.layer))
        share = parts.hidden(figures.median) if parts and s.ranks.world > 1 else None
        found["contenders"][c.name] = {
            **figures.as_json(),
            "by_hand": c.by_hand,
            "error": errors[c.name],
            "floor_share": least.ms / figures.median,
            "alone": None if parts is None else {**asdict(parts), "hidden": share},
        }
    s.journal.found["cells"].append(found)
    if s.args.kernels and s.ranks.device.type == "cuda" and tokens == max(s.args.tokens):
        found["kernels"] = {}
        for c in s.contenders:
            s.journal.at(c.name)
            found["kernels"][c.name] = kernels(s.ranks, c, inputs)
    s.journal.at("")
    s.say(f"{where}: " + ", ".join(f"{name} {c['median']:.3f}" for name, c in found["contenders"].items()))


def checked(s: Session, inputs: list[torch.Tensor], where: str) -> dict[str, float]:
    """Errors by name, of the worst rank; who fails is left out."""
    x, other = inputs[-1], inputs[-2]
    wanted, clear = s.given.result(x), s.given.clear(x)
    unclear, tokens = map(sum, zip(*s.ranks.everyone((int((~clear).sum()), len(x))), strict=True))
    if unclear > max(4, 0.02 * tokens):
        raise SystemExit(
            f"{where}: {unclear} of {tokens} tokens have no clear choice of experts: nothing can be checked"
        )
    errors = {}
    for c in list(s.contenders):
        s.journal.at(c.name)

        def one(c: Contender = c) -> float:
            c.prepare(inputs)
            c.poison(s.ranks.settle)
            return check(c, x, other, wanted, clear)

        off, reason = s.ranks.attempt(one)
        errors[c.name] = math.inf if off is None else max(s.ranks.everyone(off))
        if reason or errors[c.name] > LIMITS[s.given.dtype]:
            s.fails(c, where, reason or f"its relative error is {errors[c.name]:.2e}")
    return errors


def apart(s: Session, c: Contender, inputs: list[torch.Tensor], where: str) -> Alone | None:
    """The steps of a program, each alone; None for layers by hand, which have none."""
    if c.by_hand:
        return None
    s.journal.at(c.name)
    made, reason = s.ranks.attempt(lambda: alone(s.ranks, c, inputs))
    if reason:
        s.journal.note(f"{c.name}, {where}: its steps could not be run one by one: {reason.splitlines()[-1]}")
    return made


def soaked(s: Session, workload: str) -> None:
    if s.late() or not s.contenders:
        s.journal.note(f"{workload}: not begun, {'the time was up' if s.contenders else 'nobody is left'}")
        return
    # One that sends nothing first: the others are held against it.
    order = sorted(s.contenders, key=lambda c: (c.name != "hand-no-ep", not c.by_hand, c.graph))
    loads = sorted(s.args.tokens)
    found, failed = soak(s.ranks, order, s.workloads, workload, loads, s.args.forwards, s.given, s.journal.at)
    s.journal.found["soaks"].append(found)
    for c in order:
        if c.name in failed:
            s.fails(c, f"soak, {workload}", failed[c.name])
    s.say(f"soak, {workload}: {found['forwards']} forwards")


if __name__ == "__main__":
    main()
