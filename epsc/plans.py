"""Plans: one program for several ranges of load, each of them with a proven Schedule of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf
from typing import TYPE_CHECKING

from epsc import driver
from epsc.ir.errors import Diagnostic, EpsError, Faults
from epsc.ir.schedule import Schedule
from epsc.ir.source import Source
from epsc.ir.spec import ScheduleDecl
from epsc.machine.totals import buffer_bytes, offloaded
from epsc.passes.by_load import SERIAL
from epsc.passes.fits import too_large_together

if TYPE_CHECKING:
    from epsc import lock
    from epsc.codegen import Program
    from epsc.passes.auto import Candidate
    from epsc.passes.auto_by_tokens import Seconds


@dataclass(frozen=True)
class Plans:
    """A named schedule of a layer: a plan for each range of load, from the least to the most. Often that is one."""

    layer: driver.Layer
    name: str
    parts: tuple[driver.Plan, ...]
    """The `load` of the layer of each is its range: tokens of the rank that has most."""
    warnings: tuple[Diagnostic, ...]

    def at(self, tokens: int) -> driver.Plan:
        """The plan that a forward pass takes when the fullest rank has so many tokens."""
        return next((part for part in self.parts if tokens <= part.layer.load[1]), self.parts[-1])

    @property
    def ranks(self) -> int:
        return max(part.schedule.ranks for part in self.parts)

    def verify(self) -> None:
        """Check what the plans of one program share. Raises EpsError.

        Each Schedule is proven by itself. Of another one it shares the weights, which nobody writes, and no memory: so
        no order between steps of two plans is needed, but that of forward passes, which the caller's stream keeps.
        """
        faults = Faults()
        least, first = self.layer.load[0], self.parts[0]
        for part in self.parts:
            low, high = part.layer.load
            name = part.schedule.name
            if low != least or high < low:
                faults.add("plans-load", f"plan `{name}` is for {low} .. {high}, where {least} is due")
            least = high + 1
            for what, own, other in zip(_WHAT, _shared(part.schedule), _shared(first.schedule), strict=True):
                if own != other:
                    message = f"`{name}` and `{first.schedule.name}` are one program and have other {what}"
                    faults.add("plans-differ", message, help="give each a program of its own: `-s NAME`")
        if least != self.layer.load[1] + 1:
            faults.add("plans-load", f"no plan is for the loads from {least} to {self.layer.load[1]}")
        faults.raise_if_any()


_WHAT = ("inputs", "results", "weights", "weights in the memory of the host", "ranks")


def _shared(schedule: Schedule) -> tuple[object, ...]:
    """What all plans of a program must have alike, in the order of `_WHAT`."""
    graph = schedule.graph
    return (
        tuple((value, graph.types[value]) for value in graph.inputs),
        tuple(graph.types[value] for value in graph.results),
        {param.name: param for param in graph.params},
        offloaded(graph),
        schedule.ranks,
    )


def plans(layer: driver.Layer, schedule: str | None = None) -> Plans:
    """Decide one schedule of the file (the first unless named) for its whole load, and prove it. Raises EpsError."""
    decl = driver.named(layer, schedule)
    if decl.by_tokens and layer.load[0] < layer.load[1]:
        parts = _found(layer, decl)
    else:
        parts = tuple(driver.plan_range(layer, part) for part in driver.ranges_in(layer, decl))
    return gathered(layer, decl, parts)


def gathered(layer: driver.Layer, decl: ScheduleDecl, parts: Sequence[driver.Plan]) -> Plans:
    """Plans of one layer as one program. Raises EpsError when they are none."""
    warnings = list(dict.fromkeys(warning for part in parts for warning in part.warnings))
    if len(parts) > 1 and (large := _too_large(layer, decl, parts)):
        warnings = [*(warning for warning in warnings if warning.code != "memory"), large]
    made = Plans(layer, decl.name, tuple(parts), tuple(warnings))
    made.verify()
    return made


def _too_large(layer: driver.Layer, decl: ScheduleDecl, parts: Sequence[driver.Plan]) -> Diagnostic | None:
    sizes = [(part.schedule, part.layer.load[1]) for part in parts]
    return too_large_together(decl.name, sizes, layer.cluster.device, decl.span)


def _found(layer: driver.Layer, decl: ScheduleDecl) -> tuple[driver.Plan, ...]:
    """The plans of `auto by tokens`: while those together are too large for the device, the largest is done without."""
    from epsc.passes.auto_by_tokens import pieces  # noqa: PLC0415 - the simulator is not needed for what is written down

    asked, seconds = _asked(layer)
    left = {candidate.decl.name for candidate in asked[layer.load[1]]}  # names of candidates are not the file's
    while True:
        found = pieces(layer.load[0], asked, seconds, left)
        parts = tuple(
            replace(driver.plan_as(replace(layer, load=each.load), each.best.decl), considered=each.asked)
            for each in found
        )
        others = [part for part in parts if part.schedule.name != SERIAL.name]
        if not others or not _too_large(layer, decl, parts):
            return parts
        largest = max(others, key=lambda part: buffer_bytes(part.schedule, part.layer.load[1]))
        left.remove(largest.schedule.name)


def _asked(layer: driver.Layer) -> tuple[dict[int, list[Candidate]], Seconds]:
    """The candidates at every load that is asked about, and what says how long one takes: measured, where the lock file
    holds a measurement of that load, else predicted."""
    from epsc import lock  # noqa: PLC0415 - as above
    from epsc.passes.auto import Candidate, fastest, scheduled, search  # noqa: PLC0415
    from epsc.passes.auto_by_tokens import loads_between  # noqa: PLC0415

    pipeline, cluster, path = layer.options.pipeline, layer.cluster, lock.path_of(layer.source)
    _, known = search(layer.said, layer.graph, layer.numbers, cluster, layer.load[1], pipeline)
    loads = loads_between(*layer.load)
    kept = {n: each for n in loads if (each := lock.find(path, driver.key_of(replace(layer, load=(n, n)))))}
    for n, entry in kept.items():
        if all(replace(entry.decl, name=each.decl.name) != each.decl for each in known):
            decl = replace(entry.decl, name=f"tuned_{n}")
            schedule = scheduled(decl, layer.said, layer.graph, layer.numbers, cluster, pipeline)
            known.append(Candidate(decl, schedule, *fastest(schedule, cluster, layer.load[1])))

    @cache
    def predicted(number: int, load: int, most: int) -> tuple[float, bool]:
        return fastest(known[number].schedule, cluster, load, most)

    measured = {n: _measured(entry, known) for n, entry in kept.items()}
    asked = {
        n: [
            replace(each, seconds=measured[n][number])
            if n in measured
            else replace(each, seconds=took[0], graph=took[1])
            for number, each in enumerate(known)
            for took in (predicted(number, n, n),)
        ]
        for n in loads
    }

    def seconds(number: int, load: int, most: int) -> float:
        return measured[load][number] if load in measured else predicted(number, load, most)[0]

    return asked, seconds


def _measured(entry: lock.Entry, known: Sequence[Candidate]) -> list[float]:
    """Seconds of each candidate; endless of those that were not measured. None counts as faster than the winner, which
    was taken for reasons of noise where it is not the fastest."""
    won = next(i for i, each in enumerate(known) if replace(entry.decl, name=each.decl.name) == each.decl)
    times = [entry.milliseconds.get(each.decl.name, inf) / 1e3 for each in known]
    if times[won] == inf:
        times[won] = min(entry.milliseconds.values()) / 1e3
    return [max(each, times[won]) for each in times]


def expect_by_load(layer: driver.Layer, schedules: Sequence[str | None], tokens: int) -> None:
    """Refuse to take the plan for so many tokens where no plan is for them, or where no schedule takes others by load.
    Raises EpsError."""
    decls = [driver.named(layer, name) for name in schedules]
    if not any(decl.by_load or decl.by_tokens for decl in decls):
        message = f"--at takes one of several plans, and `{decls[0].name}` is one plan for every load"
        raise EpsError(Diagnostic("one-plan", message, decls[0].span, help="-D tokens=N asks about another load"))
    if tokens > layer.load[1]:
        message = f"--at {tokens}: the plans are for at most {layer.load[1]} tokens of a rank"
        help = "write more in the `tokens` line of the file, or ask for fewer"
        raise EpsError(Diagnostic("plans-load", message, decls[0].span, help=help))


def loads_of_auto(layer: driver.Layer, schedule: str) -> tuple[int, ...]:
    """The loads at which a schedule asks `auto`. Raises EpsError where it does not."""
    from epsc.passes.auto_by_tokens import loads_between  # noqa: PLC0415 - as above

    decl = driver.named(layer, schedule)
    if decl.by_tokens:
        return loads_between(*layer.load)
    found = tuple(part.load[1] for part in driver.ranges_in(layer, decl) if part.decl.auto)
    if not found:
        message = f"`{schedule}` does not ask `auto`: there is nothing to tune"
        raise EpsError(Diagnostic("not-auto", message, decl.span, help="name one with `= auto`, or none"))
    return found


def check(source: Source, options: driver.Options | None = None) -> tuple[driver.Layer, list[driver.Plan], list[Plans]]:
    """As `driver.check`, and the schedules that take others by load: what their plans share. Of a range that `auto`
    plans that is found when it is compiled."""
    layer, proven = driver.check(source, options)
    known = {plan.schedule.name: plan for plan in proven}
    faults, found = Faults(), []
    for decl in layer.schedules:
        ranges = driver.ranges_in(layer, decl) if decl.by_load else ()
        if not ranges or any(each.decl.auto for each in ranges):
            continue
        try:
            parts = []
            for each in ranges:
                plan = known.get(each.decl.name) or driver.plan_range(layer, each)
                parts.append(replace(plan, layer=replace(layer, load=each.load), warnings=()))
            found.append(gathered(layer, decl, parts))
        except EpsError as error:
            faults.diagnostics += [d for d in error.diagnostics if d not in faults.diagnostics]
    faults.raise_if_any()
    return layer, proven, found


def told(made: Plans) -> str:
    """Which plan is taken at which load, in words."""
    if len(made.parts) == 1:  # it has the name of what takes it
        return f"one plan for {loads(made.parts[0])}"
    return ", ".join(f"`{part.schedule.name}` for {loads(part)}" for part in made.parts)


def loads(part: driver.Plan) -> str:
    """The range of load of a plan, in words."""
    low, high = part.layer.load
    return f"{low} to {high} tokens" if low < high else f"{high} tokens"


def write(made: Plans) -> Program:
    """The program of plans, whole and checked."""
    if len(made.parts) == 1:
        return driver.write(made.parts[0])
    from epsc.codegen import emit_plans  # noqa: PLC0415 - Jinja is slow to load, and checking needs no program

    layer = made.layer
    # Where one plan speaks of more than ep, all of them say which ranks share experts.
    meshes = max((part.schedule.meshes for part in made.parts), key=len)
    return emit_plans(
        [(replace(part.schedule, meshes=meshes), part.layer.load) for part in made.parts],
        made.name,
        spec_text=layer.source.text,
        version=driver.VERSION,
        device=layer.cluster.device,
        settings=layer.options.told,
    )
