"""`epsc explain`: where the time of a plan goes, why, and what would be chosen instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from epsc import driver, plans
from epsc.commands.options import compile_options, file_argument, options_of, schedule_option
from epsc.commands.report import report
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.graph import places_of
from epsc.ir.places import named, short_names
from epsc.ir.schedule import Schedule
from epsc.machine.cluster import Cluster, Origin
from epsc.machine.ranks import simulate_ranks, skewed
from epsc.machine.reasons import Why, exposures, least_total, spent
from epsc.machine.simulate import simulate
from epsc.machine.timeline import Timeline
from epsc.passes.auto import Candidate, best_of, fastest, search
from epsc.render.amounts import duration

BEST = 5
"""Plans that are shown."""
NEAR = 8
"""Plans that are asked again when something changes: the best, and serial."""


@click.command()
@file_argument
@compile_options
@schedule_option
@click.option("--measured", type=click.Path(path_type=Path), help="What the program wrote with --bench --json FILE.")
@click.option(
    "--skew", type=click.FloatRange(1), default=1.5, show_default=True, help="Rows of the busiest rank over the mean."
)
@click.option("--at", type=click.IntRange(0), metavar="TOKENS", help="Of plans by load the one for so many tokens.")
def explain(file: Path, schedule: str | None, measured: Path | None, skew: float, at: int | None, **given: Any) -> None:
    """Say where the time of a plan goes, what is exposed and why, and which plans come next.

    Of a schedule by load the plan for the most tokens, or for --at, and what plans take on both sides of each border.

    Everything is predicted for the file's highest load with balanced routing, from the cluster's profile, and last
    what it costs if one rank has more rows than others; --measured holds the prediction against a measurement.
    """
    layer = driver.understand(driver.read(file), options_of(given))
    if at is not None:
        plans.expect_by_load(layer, (schedule,), at)
    made = plans.plans(layer, schedule)
    plan = made.at(layer.load[1] if at is None else at)
    layer = plan.layer
    report((*layer.warnings, *made.warnings))
    load, cluster = layer.load[1], layer.cluster
    timeline = simulate(plan.schedule, cluster, load)
    asked = (
        list(plan.considered)
        or search(layer.said, layer.graph, layer.numbers, cluster, load, layer.options.pipeline)[1]
    )
    told = [
        *_ranges(made, plan),
        *_head(plan, timeline),
        *_where(timeline),
        *_exposed(plan, timeline),
        *_plans(plan, timeline, asked),
        *_changes(plan, asked, skew),
    ]
    if measured:
        told += _measured(measured, plan)
    click.echo("\n".join(told))


def _ranges(made: plans.Plans, plan: driver.Plan) -> Iterator[str]:
    """Of several plans: which is explained, and what they take where one gives way to the next."""
    if len(made.parts) == 1:
        return
    yield f"{made.name}: {plans.told(made)}"
    for below, above in pairwise(made.parts):
        border = below.layer.load[1]
        for load in (border, border + 1):
            took = [(part, _seconds(part, load)) for part in (below, above)]
            times = ", ".join(f"{part.schedule.name} {duration(seconds)}" for part, seconds in took)
            yield f"  at {load:>6} tokens  {times}"
    yield f"explained: {plan.schedule.name}, for {plans.loads(plan)}\n"


def _seconds(part: driver.Plan, load: int) -> float:
    """What a plan takes at a load, with the room that it has, or would have."""
    return fastest(part.schedule, part.layer.cluster, load, max(load, part.layer.load[1]))[0]


def _head(plan: driver.Plan, timeline: Timeline) -> Iterator[str]:
    device = plan.layer.cluster.device
    kind = "measured" if device.origin is Origin.MEASURED else "published figures, not measured"
    yield (
        f"{plan.schedule.name}, {timeline.load} tokens per rank, ep {plan.schedule.ep}: {duration(timeline.total)}"
        f" predicted with profile {device.profile} ({kind})"
    )
    seconds, graph = fastest(plan.schedule, plan.layer.cluster, timeline.load, plan.layer.load[1])
    if graph:
        yield f"  {duration(seconds)} as a CUDA graph, as plans are compared; what follows is what the host issues"
    work = least_total(timeline)
    most = max(work, key=lambda name: work[name])
    yield f"  no order of these steps takes less than {duration(work[most])}: that is what {most} have to do"


def _where(timeline: Timeline) -> Iterator[str]:
    yield "\nwhere the time goes"
    for what, seconds in spent(timeline).items():
        if seconds > 0:
            yield f"  {what:<46}{duration(seconds):>9}{seconds / timeline.total:>6.0%}"
    if timeline.slowed > 1e-7:
        yield f"  {'of it, lost by compute to what runs beside it':<46}{duration(timeline.slowed):>9}"
        slowest = sorted(timeline.events, key=lambda e: -e.slowed)[:3]
        for event in slowest:
            if event.slowed > 1e-7 and event.role.value in ("compute", "memory"):
                yield f"    {event.step}: {duration(event.seconds)} instead of {duration(event.seconds - event.slowed)}"


def _exposed(plan: driver.Plan, timeline: Timeline) -> Iterator[str]:
    if not timeline.transfers:
        return
    schedule = plan.schedule
    yield f"\nwhat is exposed: {duration(timeline.exposed_transfer)} of transfers ({timeline.hidden:.0%} hidden)"
    short = short_names(places_of(*schedule.graph.nodes))
    for found in sorted(exposures(timeline, schedule), key=lambda e: -e.seconds)[:BEST]:
        places = named(short[place] for place in schedule.node(schedule.step[found.step]).places)
        step = f"{found.step} ({places})" if places else found.step
        yield f"  {duration(found.seconds):>8}  {step}: {found.why}: {found.words}"


def _plans(plan: driver.Plan, timeline: Timeline, asked: list[Candidate]) -> Iterator[str]:
    best = best_of(asked)
    yield "\nplans, by prediction"
    for candidate in sorted(asked, key=lambda c: c.seconds)[:BEST]:
        mark = "taken" if candidate is best else f"{candidate.seconds / best.seconds - 1:+.1%}"
        form = ", as a CUDA graph" if candidate.graph else ""
        yield f"  {candidate.decl.name:<28}{duration(candidate.seconds):>9}  {mark}{form}"
    if best is not min(asked, key=lambda c: c.seconds):
        yield f"  {best.decl.name} is taken: a plan must be clearly faster than serial, because predictions err"
    if not plan.considered:
        own, graph = fastest(plan.schedule, plan.layer.cluster, timeline.load)
        words = f"{own / best.seconds - 1:+.1%}" + (", as a CUDA graph" if graph else "")
        yield f"  {plan.schedule.name + ' (this plan)':<28}{duration(own):>9}  {words}"


def _changes(plan: driver.Plan, asked: list[Candidate], skew: float) -> Iterator[str]:
    """What would be taken if one thing were different: the best plans, simulated again."""
    yield "\nwhat would change the decision"
    layer, best = plan.layer, best_of(asked)
    near = [asked[0], *sorted(asked[1:], key=lambda c: c.seconds)[:NEAR]]
    for change in _what_if(layer.cluster, layer.load[1]):
        now = [replace(c, seconds=fastest(c.schedule, change.cluster, change.load)[0]) for c in near]
        taken = best_of(now)
        verb = "still" if taken.decl.name == best.decl.name else "then"
        serial = duration(now[0].seconds)
        yield f"  {change.words:<36}{verb} {taken.decl.name}, {duration(taken.seconds)} (serial {serial})"
    yield from _imbalance(plan, near, skew)


def _imbalance(plan: driver.Plan, near: list[Candidate], skew: float) -> Iterator[str]:
    """What it costs that one rank has more rows, which balanced routing leaves out: beside what is predicted above."""
    schedule, cluster, load = plan.schedule, plan.layer.cluster, plan.layer.load[1]
    if schedule.ep == 1:
        return
    shares, alike = skewed(schedule.ep, skew), skewed(schedule.ep, 1)

    def busiest(made: Schedule, seconds: float, graph: bool) -> tuple[float, tuple[Timeline, ...]]:
        """What a plan takes that takes `seconds` where ranks are alike, and all kinds of ranks."""
        ranks = simulate_ranks(made, cluster, load, shares, graph)
        balanced = simulate_ranks(made, cluster, load, alike, graph)
        return seconds + max(each.total for each in ranks) - balanced[0].total, ranks

    own, graph = fastest(schedule, cluster, load)
    total, ranks = busiest(schedule, own, graph)
    words = f"busiest rank has {skew:g} x the rows"
    form = ", as a CUDA graph" if graph else ""
    same = duration(total) == duration(own)
    than = "as with balanced loads" if same else f"not the {duration(own)} of balanced loads"
    yield f"  {words:<36}this plan takes {duration(total)}, {than}{form}"
    waits = [found for timeline in ranks for found in exposures(timeline, schedule) if found.why is Why.IMBALANCE]
    for found in sorted(waits, key=lambda e: -e.seconds)[:1]:
        yield f"  {'':<36}{duration(found.seconds)} in {found.step}: {found.why}: {found.words}"
    then = best_of([replace(c, seconds=busiest(c.schedule, c.seconds, c.graph)[0]) for c in near])
    yield f"  {'':<36}of the best plans {then.decl.name} would be taken, {duration(then.seconds)}"


@dataclass(frozen=True)
class _Change:
    words: str
    cluster: Cluster
    load: int


def _what_if(cluster: Cluster, load: int) -> Iterator[_Change]:
    device = cluster.device
    for factor in (0.25, 4):
        tokens = max(1, int(load * factor))
        yield _Change(f"{tokens} tokens per rank", cluster, tokens)
    faster = {
        name: getattr(device, name) * 2 for name in ("intra_bytes_per_s", "inter_bytes_per_s", "copy_bytes_per_s")
    }
    # Tables keep their ratio to the roofline of the device that they were measured on.
    base = device.base or device
    yield _Change("links twice as fast", replace(cluster, device=replace(device, base=base, **faster)), load)
    free = replace(device, base=base, launch_s=0.0, triton_s=0.0, step_s=0.0)
    yield _Change("launches that cost the host nothing", replace(cluster, device=free), load)
    alone = replace(device, base=base, besides=tuple(replace(b, points=((1.0, 1.0),)) for b in device.besides))
    yield _Change("transfers that disturb no product", replace(cluster, device=alone), load)


def _measured(path: Path, plan: driver.Plan) -> Iterator[str]:
    found = _read(path)
    yield "\npredicted against measured"
    for entry in found:
        tokens = max(entry["tokens"])
        name, ms = entry.get("plan", entry["schedule"]), float(entry["bench"]["median_ms"])
        if name != plan.schedule.name or entry["ranks"] != plan.schedule.ep:
            raise EpsError(
                Diagnostic(
                    "other-plan",
                    f"{path} measured `{name}` on {entry['ranks']} ranks,"
                    f" not `{plan.schedule.name}` on {plan.schedule.ep}",
                    help=f"-s {name} -D ep={entry['ranks']} explains that one",
                )
            )
        said = simulate(plan.schedule, plan.layer.cluster, tokens).total * 1e3
        yield f"  {tokens} tokens: {ms:.3f} ms measured, {said:.3f} ms predicted ({said / ms - 1:+.0%})"


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        said = json.loads(driver.read(path).text)
        entries = said if isinstance(said, list) else [said]
        for entry in entries:
            float(entry["bench"]["median_ms"]), max(entry["tokens"]), entry["schedule"], entry["ranks"]
    except (ValueError, KeyError, TypeError) as error:
        raise EpsError(
            Diagnostic(
                "not-measured",
                f"{path} holds no measurement: {error!r}",
                help="a program writes one with --bench --json FILE",
            )
        ) from None
    return entries
