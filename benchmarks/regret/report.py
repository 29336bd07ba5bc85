"""What was measured against what is predicted and chosen: per case, and in numbers for all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from benchmarks.regret.plans import Case, asked
from epsc import driver
from epsc.grammar import format_spec, parse
from epsc.ir.schedule import Schedule
from epsc.ir.source import Source
from epsc.ir.spec import ScheduleDecl, Spec
from epsc.machine.cluster import Cluster
from epsc.machine.simulate import period
from epsc.passes.auto import scheduled

GRAPH = "+graph"
TUNED = 4
"""Plans that `epsc tune` measures besides serial."""
LEAST_NOISE = 0.02


@dataclass(frozen=True)
class Measured:
    """A plan in one of its two forms at one load."""

    plan: str
    graph: bool
    runs: tuple[float, ...]
    """Milliseconds, a median for each run."""
    predicted: float
    on_its_host: float | None = None
    """Predicted with the speed of the host that its layer was measured on; None of what that was told by."""

    @property
    def ms(self) -> float:
        return sum(self.runs) / len(self.runs)

    @property
    def error(self) -> float:
        return self.predicted / self.ms - 1

    @property
    def name(self) -> str:
        return self.plan + (GRAPH if self.graph else "")


@dataclass(frozen=True)
class Row:
    """A layer at a load: all that was measured, and what `auto` takes."""

    layer: str
    tokens: int
    every: tuple[Measured, ...]
    picked: str
    """The name of `auto`'s plan in the form that is predicted the faster; "" if that was not measured."""

    @cached_property
    def by_name(self) -> dict[str, Measured]:
        return {found.name: found for found in self.every}

    @cached_property
    def best(self) -> Measured:
        return min(self.every, key=lambda found: found.ms)

    @property
    def pick(self) -> Measured | None:
        return self.by_name.get(self.picked)

    @property
    def serial(self) -> Measured:
        return self.by_name["serial"]

    @property
    def regret(self) -> float | None:
        return self.pick.ms / self.best.ms - 1 if self.pick else None

    @property
    def judged_regret(self) -> float | None:
        """As `regret`, but the best is the one of the first run, and both are judged by the last: of twenty plans that
        are alike the luckiest is fastest, and is so once."""
        best = min(self.every, key=lambda found: found.runs[0])
        return self.pick.runs[-1] / best.runs[-1] - 1 if self.pick else None

    @property
    def tuned_regret(self) -> float | None:
        """Of what `epsc tune` would keep: measured in the first run, judged by the last."""
        if len(self.serial.runs) < 2:
            return None
        plans: dict[str, Measured] = {}
        for found in sorted(self.every, key=lambda found: found.predicted):
            plans.setdefault(found.plan, found)
        near = [self.serial, *[found for name, found in plans.items() if name != "serial"][:TUNED]]
        kept = min(near, key=lambda found: found.runs[0])
        if kept.runs[0] >= self.serial.runs[0] * (1 - LEAST_NOISE):
            kept = self.serial
        return kept.runs[-1] / min(found.runs[-1] for found in self.every) - 1


def collect(folder: Path, results: Path, earlier: dict[str, Any]) -> dict[str, Any]:
    """All that was measured in a form that is small enough to keep; of other layers, what was measured `earlier`."""
    wanted = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    kept: dict[str, Any] = {key: wanted[key] for key in ("ranks", "preset", "most")}
    kept["layers"] = dict(earlier)
    for name, layer in wanted["layers"].items():
        path = results / f"{name}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        kept |= {key: found[key] for key in ("device", "torch", "dtype", "rounds", "runs") if key in found}
        cells = {
            str(cell["tokens"]): {
                each: [round(ms, 4) for ms in c["runs"]] for each, c in sorted(cell["contenders"].items())
            }
            for cell in sorted(found["cells"], key=lambda cell: cell["tokens"])
        }
        failed = sorted({f["name"] for f in found["failed"]})
        kept["layers"][name] = {"file": layer["file"], "plans": layer["plans"], "cells": cells, "failed": failed}
    return kept


def rows_of(kept: dict[str, Any], profile: str | None = None) -> Iterator[Row]:
    """Every case of `collect`, predicted and chosen by the compiler as it is now."""
    for name, layer in kept["layers"].items():
        where = Case(Path(layer["file"]), kept["most"], kept["ranks"], kept["preset"], profile)
        made = where.layer()
        plans = {plan: _scheduled(made, _decl(plan, text)) for plan, text in layer["plans"].items()}
        there, told_by = measured_host(made.cluster, plans["serial"], layer["cells"], where.tokens)
        for tokens, cell in layer["cells"].items():
            case = Case(where.file, int(tokens), where.ranks, where.preset, profile)
            every = []
            for each, runs in cell.items():
                plan, graph = each.removesuffix(GRAPH), each.endswith(GRAPH)
                schedule = plans[plan]
                said = period(schedule, made.cluster, case.tokens, graph, where.tokens) * 1e3
                hosted = period(schedule, there, case.tokens, graph, where.tokens) * 1e3
                tells = (each, tokens) == ("serial", told_by)
                every.append(Measured(plan, graph, tuple(runs), said, None if tells else hosted))
            taken, _ = asked(case, where.tokens)
            same = [plan for plan, text in layer["plans"].items() if _directives(text) == _directives_of(taken.decl)]
            forms = [found for found in every if found.plan in same]
            picked = min(forms, key=lambda found: found.predicted).name if forms else ""
            yield Row(name, case.tokens, tuple(every), picked)


def measured_host(cluster: Cluster, serial: Schedule, cells: dict[str, Any], most: int) -> tuple[Cluster, str]:
    """The cluster with the host that a layer was measured on, and the load that told: the least. Hosts of the same GPUs
    differ by a factor of 2, and serial with few tokens does little but wait for the host: all that the host does takes
    so many times as long that serial comes out right there."""
    least = min(cells, key=int)
    wanted = mean(cells[least]["serial"]) / 1e3
    low, high = 0.25, 4.0
    while high / low > 1.001:
        middle = sqrt(low * high)
        slow = period(serial, _slower(cluster, middle), int(least), False, most) > wanted
        low, high = (low, middle) if slow else (middle, high)
    return _slower(cluster, low), least


def _slower(cluster: Cluster, factor: float) -> Cluster:
    """With a host that takes so many times as long."""
    names = ("launch_s", "step_s", "triton_s", "host_sync_s")
    device = replace(cluster.device, **{name: getattr(cluster.device, name) * factor for name in names})
    return replace(cluster, device=device)


def _scheduled(layer: driver.Layer, decl: ScheduleDecl) -> Schedule:
    return scheduled(decl, layer.said, layer.graph, layer.numbers, layer.cluster, layer.options.pipeline)


def _decl(name: str, text: str) -> ScheduleDecl:
    return parse(Source(name, text)).schedules[0]


def _directives(text: str) -> str:
    return text.partition("{")[2].strip()


def _directives_of(decl: ScheduleDecl) -> str:
    return _directives(format_spec(Spec((decl,))))


def summary(rows: list[Row]) -> list[str]:
    """What the numbers say, in sentences."""
    regrets = sorted(row.regret for row in rows if row.regret is not None)
    tuned = sorted(regret for row in rows if (regret := row.tuned_regret) is not None)
    errors = sorted(abs(found.error) for row in rows for found in row.every)
    graphs = sorted(abs(found.error) for row in rows for found in row.every if found.graph)
    picks = sorted(abs(row.pick.error) for row in rows if row.pick)
    slower = [f"{row.layer} at {row.tokens}" for row in rows if row.pick and row.pick.ms > row.serial.ms * 1.02]
    unknown = [f"{row.layer} at {row.tokens}" for row in rows if row.pick is None]
    lines = [f"{len(rows)} cases, {sum(len(row.every) for row in rows)} measurements of plans."]
    lines += [f"Regret of `auto`: {_spread(regrets)}."] if regrets else []
    judged = sorted(regret for row in rows if (regret := row.judged_regret) is not None)
    what = "Regret of `auto` against what was best in the first run, both judged by the last"
    lines += [f"{what}: {_spread(judged)}."] if judged else []
    lines += (
        [f"Of what `epsc tune` would keep (measured in the first run, judged by the last): {_spread(tuned)}."]
        if tuned
        else []
    )
    lines += [f"Slower than serial by more than 2 %: {', '.join(slower) or 'never'}."]
    for what, found in (("all plans", errors), ("CUDA graphs", graphs), ("what `auto` picks", picks)):
        lines += [f"Errors of predictions, {what}: {_spread(found)}."] if found else []
    own = sorted(abs(found.on_its_host / found.ms - 1) for row in rows for found in row.every if found.on_its_host)
    said = "with the speed of the host of each layer, which serial at the least load tells (left out)"
    lines += [f"Errors of predictions, all plans, {said}: {_spread(own)}."] if own else []
    again = {
        what: sorted(abs(f.runs[-1] / f.runs[0] - 1) for row in rows for f in row.every if f.graph == graph)
        for what, graph in (("CUDA graphs", True), ("others", False))
    }
    lines += [f"The last run against the first, {what}: {_spread(found)}." for what, found in again.items() if found]
    lines += [f"Picked, but not measured: {', '.join(unknown)}."] if unknown else []
    return lines


def _spread(numbers: list[float]) -> str:
    end = quantiles(numbers, n=20, method="inclusive")[-1] if len(numbers) > 1 else numbers[0]
    return f"median {median(numbers):.1%}, 95th percentile {end:.1%}, worst {max(numbers):.1%}"


def table(rows: list[Row]) -> list[str]:
    """Markdown: a line for each case."""
    lines = [
        "| layer | tokens per rank | `auto` takes | predicted, ms | measured | best | measured | regret | serial |",
        f"|{' --- |' * 9}",
    ]
    last = ""
    for row in rows:
        pick = row.pick
        cells = ["not measured", "", "", *_form(row.best)] if pick is None else [pick.name, f"{pick.predicted:.3f}"]
        if pick is not None:
            cells += [f"{pick.ms:.3f}", *_form(row.best)]
        cells += ["" if row.regret is None else f"{row.regret:.1%}", f"{row.serial.ms:.3f}"]
        lines.append(f"| {row.layer if row.layer != last else ''} | {row.tokens} | {' | '.join(cells)} |")
        last = row.layer
    return lines


def _form(found: Measured) -> tuple[str, str]:
    return found.name, f"{found.ms:.3f}"


def page(kept: dict[str, Any], rows: list[Row], command: str) -> str:
    """The whole page of the docs."""
    what = f"{kept['ranks']} x {kept.get('device', 'cpu')}, torch {kept.get('torch', '')}, {kept.get('dtype', '')}"
    failed = [f"{name}: {', '.join(layer['failed'])}" for name, layer in kept["layers"].items() if layer["failed"]]
    lines = [
        "# What auto picks, against all that was measured",
        "",
        f"Written by `{command}`, from what `python -m benchmarks.regret measure` found on {what}: medians of"
        f" {kept.get('rounds')} rounds, {kept.get('runs')} runs, random routing, every output checked. Regret is how"
        " much longer the plan takes that `auto` picks by prediction than the best of all that were measured. A plan is"
        " run as a CUDA graph where that is predicted to be faster. Predictions are those of now; what was measured are"
        " programs of that day. [The model](cost-model.md).",
        "",
        *(f"- {line}" for line in summary(rows)),
        *([f"- Failed, and left out: {'; '.join(failed)}."] if failed else []),
        "",
        "![Predicted against measured; dashed: 20 % off](predicted.svg)",
        "",
        *table(rows),
    ]
    return "\n".join(lines) + "\n"
