"""The compiler as a straight line: text -> Spec -> Graph -> Schedule -> Program. The command line calls this."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from epsc import __version__
from epsc.grammar import parse_recovering
from epsc.ir.attrs import RowsAttrs
from epsc.ir.errors import Diagnostic, EpsError, Faults, did_you_mean
from epsc.ir.graph import Graph
from epsc.ir.schedule import Schedule
from epsc.ir.source import Source
from epsc.ir.spec import ScheduleDecl, Spec
from epsc.machine.cluster import Cluster, Mesh
from epsc.passes.asks import asks_of
from epsc.passes.build import Draft, draft
from epsc.passes.by_load import SERIAL, Range, ranges_of
from epsc.passes.fits import too_large
from epsc.passes.numbers import MOST, Numbers, cluster_settings, load_of
from epsc.passes.pipeline import PIPELINE, Decision, Pass, Watcher, decide, lower, rewritten
from epsc.passes.resolve import resolve
from epsc.passes.wishes import Context

if TYPE_CHECKING:
    from epsc import lock
    from epsc.codegen import Program
    from epsc.passes.auto import Candidate


@dataclass(frozen=True)
class Options:
    """What a command line can ask of a compile."""

    defines: dict[str, str] = field(default_factory=dict)
    preset: str | None = None
    layer: str | None = None
    cluster: str | None = None
    pipeline: tuple[Pass, ...] = PIPELINE
    watch: Watcher | None = None
    profile: str | None = None
    """A shipped cluster profile, or the file of one, whose numbers replace those of the cluster's device."""

    @property
    def told(self) -> str:
        """What differs from the file, as a command line says it: `--preset small -D ep=2`."""
        preset = [f"--preset {self.preset}"] if self.preset else []
        return " ".join([*preset, *(f"-D {name}={value}" for name, value in self.defines.items())])


@dataclass(frozen=True)
class Layer:
    """A layer that was read and understood: what its schedules are decided for."""

    source: Source
    spec: Spec
    said: Graph
    """As the file says it."""
    graph: Graph
    """Lowered: what schedules speak of."""
    numbers: Numbers
    cluster: Cluster
    load: tuple[int, int]
    """Tokens per rank, least and most."""
    options: Options
    warnings: tuple[Diagnostic, ...]

    @property
    def schedules(self) -> tuple[ScheduleDecl, ...]:
        return self.spec.schedules or (SERIAL,)


@dataclass(frozen=True)
class Plan:
    """A layer with a proven Schedule."""

    layer: Layer
    schedule: Schedule
    warnings: tuple[Diagnostic, ...]
    considered: tuple[Candidate, ...] = ()
    """For `auto`: every candidate, with its predicted time."""


def read(path: Path) -> Source:
    """The text of a `.eps` file. Raises EpsError when it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EpsError(Diagnostic("no-file", f"cannot read {path}: {error.strerror}")) from None
    return decode(str(path), content)


def decode(name: str, content: bytes) -> Source:
    """Bytes as the text of a file of that name. Raises EpsError when they are no text."""
    try:
        return Source(name, content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise EpsError(Diagnostic("not-text", f"{name} is not UTF-8 text (byte {error.start})")) from None


def save(path: Path, text: str) -> None:
    """Write a file whole or not at all; its folder is made. Raises EpsError when it cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):  # what kept it from being written may keep it from being deleted
            part.unlink()
        raise EpsError(Diagnostic("no-file", f"cannot write {path}: {error.strerror}")) from None


def understand(source: Source, options: Options | None = None) -> Layer:
    """Source text -> lowered Graph, with the machine it is for. Raises EpsError with everything that is wrong.

    Schedules are not: one that cannot be had must not keep a user from another. `check` looks at all of them.
    """
    faults = Faults()
    layer = _read(source, options or Options(), faults)
    faults.raise_if_any()
    if layer is None:
        raise AssertionError("the layer could not be built, and nobody said why")
    return layer


def _read(source: Source, options: Options, faults: Faults, schedules: bool = False) -> Layer | None:
    """The layer; None when there are faults that leave none. `schedules`: then look for theirs all the same."""
    spec, found = parse_recovering(source)
    faults.diagnostics += found.diagnostics
    numbers = Numbers(spec, faults, options.defines, options.preset)
    cluster = _cluster(spec, numbers, options, faults)
    mesh = cluster.mesh if cluster else Mesh()
    made = draft(spec, numbers, options.layer, mesh.ep, faults, mesh.etp)
    load = load_of(spec, numbers)
    if made is None or not made.whole or cluster is None:
        # What the text lost where it could not be read may be what a schedule names.
        if schedules and made and not found.errors:
            _look_at_schedules(spec, made, numbers, cluster, options, faults)
        return None
    try:
        said = rewritten(made.graph, options.pipeline, options.watch)
    except EpsError as error:
        faults.diagnostics += error.diagnostics
        return None
    _check_ranks(said, cluster, faults)
    graph = lower(said, options.pipeline)
    return Layer(source, spec, said, graph, numbers, cluster, load, options, tuple(faults.warnings))


def _check_ranks(said: Graph, cluster: Cluster, faults: Faults) -> None:
    """Add a fault for experts that the ranks cannot share evenly; of those in the file, `draft` told already."""
    told = {d.code for d in faults.errors}
    for node in said.nodes:
        if node.kind != "dispatch" or not isinstance(node.attrs, RowsAttrs) or "experts-ep" in told:
            continue
        if node.attrs.experts % cluster.mesh.ep:
            message = f"{node.attrs.experts} experts cannot be shared evenly by ep = {cluster.mesh.ep} ranks"
            faults.add("experts-ep", message, node.span, help=f"ep must divide {node.attrs.experts}")
            return


def _look_at_schedules(
    spec: Spec, made: Draft, numbers: Numbers, cluster: Cluster | None, options: Options, faults: Faults
) -> None:
    """Add the faults of schedules that are there whatever becomes of those of the layer and the cluster."""
    ep, sms = (cluster.mesh.ep, cluster.device.sms) if cluster else (1, MOST)
    for decl in spec.schedules:
        if decl.by_load:
            ranges_of(decl, spec.schedules, numbers, load_of(spec, numbers), faults)
            continue
        try:
            nodes, node_ranks = (cluster.nodes, cluster.node_ranks) if cluster else (1, 1)
            asks = asks_of(decl, made.graph, numbers, made.vague, nodes, node_ranks)
        except EpsError as error:
            faults.diagnostics += [d for d in error.diagnostics if d not in faults.diagnostics]
            continue
        graph = lower(made.graph, options.pipeline, asks=asks)
        resolve(decl, graph, numbers, ep, sms, faults, made.vague | asks.lost)


def lowered(layer: Layer, decl: ScheduleDecl) -> Graph:
    """The graph that `decl` decides on: transports that it chooses are ops of their own, and so are the activations
    that it speaks of. Who watches is shown all passes of every plan. Raises EpsError for what no lowering can give."""
    cluster = layer.cluster
    asks = asks_of(decl, layer.said, layer.numbers, nodes=cluster.nodes, node_ranks=cluster.node_ranks)
    watch = layer.options.watch
    return lower(layer.said, layer.options.pipeline, watch, asks) if asks or watch else layer.graph


def _cluster(spec: Spec, numbers: Numbers, options: Options, faults: Faults) -> Cluster | None:
    declared = {decl.name: decl for decl in spec.clusters}
    if options.cluster is not None and options.cluster not in declared:
        faults.add(
            "unknown-name", f"the file has no cluster `{options.cluster}`", help=did_you_mean(options.cluster, declared)
        )
        return None
    decl = declared[options.cluster] if options.cluster else next(iter(spec.clusters), None)
    settings = cluster_settings(decl, numbers)
    if faults.errors and not settings and decl:
        return None
    sizes = {key: value for key in ("ep", "etp", "tp", "dp", "nodes") if isinstance(value := settings.get(key), int)}
    ranks = settings.get("ranks")
    sizes.setdefault("ep", max(1, ranks // sizes.get("etp", 1)) if isinstance(ranks, int) else 1)
    try:
        device = str(settings.get("device", "h200"))
        cluster = Cluster.make(decl.name if decl else "local", device, profile=options.profile, **sizes)
    except EpsError as error:
        faults.diagnostics += [replace(d, span=d.span or (decl.span if decl else None)) for d in error.diagnostics]
        return None
    if isinstance(sms := settings.get("sms"), int):
        cluster = replace(cluster, device=replace(cluster.device, sms=sms, base=cluster.device))
    return cluster


def sharers(source: Source, options: Options) -> int:
    """How many ranks share each expert: the `etp` of the cluster, whatever else is wrong with the file."""
    spec, _ = parse_recovering(source)
    decl = next((decl for decl in spec.clusters if options.cluster in (None, decl.name)), None)
    etp = cluster_settings(decl, Numbers(spec, Faults(), options.defines, options.preset)).get("etp", 1)
    return etp if isinstance(etp, int) else 1


def named(layer: Layer, schedule: str | None = None) -> ScheduleDecl:
    """The schedule of that name; the first of the file if there is none. Raises EpsError."""
    if schedule is None:
        return layer.schedules[0]
    known = {"serial": SERIAL, **{decl.name: decl for decl in layer.schedules}}
    if schedule not in known:
        message = f"{layer.source.name} has no schedule `{schedule}`"
        raise EpsError(Diagnostic("unknown-schedule", message, help=did_you_mean(schedule, known)))
    return known[schedule]


def plan(layer: Layer, schedule: str | None = None) -> Plan:
    """Decide one schedule of the file (the first unless named) and prove it. Raises EpsError, also for one that has
    several plans by load: `plans` makes those."""
    decl = named(layer, schedule)
    ranges = ranges_in(layer, decl)
    low, high = layer.load
    if len(ranges) > 1 or (decl.by_tokens and low < high):
        message = f"`{decl.name}` has plans by load, for {low} .. {high} tokens, and this takes one plan"
        raise EpsError(Diagnostic("several-plans", message, decl.span, help="-D tokens=N takes the plan for that load"))
    return plan_range(layer, ranges[0])


def plan_at(layer: Layer, schedule: str | None, tokens: int) -> Plan:
    """As `plan`; of a schedule with plans by load the one that is taken when the fullest rank has so many tokens, for
    that load alone. Raises EpsError."""
    decl = named(layer, schedule)
    if not (decl.by_load or decl.by_tokens):
        return plan(layer, schedule)
    part = next(each for each in ranges_in(layer, decl) if tokens <= each.load[1])
    return plan_range(layer, Range((tokens, tokens), replace(part.decl, name=decl.name)))


def ranges_in(layer: Layer, decl: ScheduleDecl) -> tuple[Range, ...]:
    """Which schedule `decl` takes at which load. Raises EpsError."""
    faults = Faults()
    found = ranges_of(decl, layer.schedules, layer.numbers.telling(faults), layer.load, faults)
    faults.raise_if_any()
    return found


def plan_range(layer: Layer, part: Range) -> Plan:
    """Decide the schedule of a range of load, and prove it. Raises EpsError."""
    layer = replace(layer, load=part.load)
    cluster, options, decl = layer.cluster, layer.options, part.decl
    if decl.auto:
        # Neither is needed to prove what is written down.
        from epsc import lock  # noqa: PLC0415

        if kept := lock.find(lock.path_of(layer.source), key_of(layer)):
            return plan_as(layer, replace(kept.decl, name=decl.name))
        from epsc.passes.auto import search  # noqa: PLC0415 - the simulator is not needed to prove what is written down

        _, asked = search(layer.said, layer.graph, layer.numbers, cluster, layer.load[1], options.pipeline)
        decision = _first_that_fits(layer, decl, asked)
        return Plan(layer, decision.schedule, decision.warnings, tuple(asked))
    return plan_as(layer, decl)


def plan_as(layer: Layer, decl: ScheduleDecl) -> Plan:
    """Decide a schedule, of the file or not, and prove it. Raises EpsError."""
    decision = _decide(layer, decl)
    return Plan(layer, decision.schedule, decision.warnings)


def key_of(layer: Layer) -> lock.Key:
    """What a measurement of this layer at its highest load is kept by."""
    from epsc import lock  # noqa: PLC0415 - as above

    return lock.Key.of(layer.said, layer.cluster.device.name, layer.cluster.mesh.ep, layer.load[1])


def _first_that_fits(layer: Layer, decl: ScheduleDecl, asked: list[Candidate]) -> Decision:
    """For an `auto`, `decl`: the best candidate that the device has memory for; the best of all where there is none."""
    from epsc.passes.auto import best_of  # noqa: PLC0415 - as above

    left, first = list(asked), None
    while left:
        best = best_of(left)
        decision = _decide(layer, replace(best.decl, name=decl.name, span=decl.span))
        if not any(warning.code == "memory" for warning in decision.warnings):
            return decision
        first = first or decision
        left.remove(best)
    assert first is not None, "serial is always among them"
    return first


def _decide(layer: Layer, decl: ScheduleDecl) -> Decision:
    faults = Faults()
    graph, mesh, device = lowered(layer, decl), layer.cluster.mesh, layer.cluster.device
    wishes = resolve(decl, graph, layer.numbers, mesh.ep, device.sms, faults)
    faults.raise_if_any()
    context = Context(wishes, mesh.ep, device.sms, device, layer.cluster.tables)
    decision = decide(graph, context, layer.options.pipeline, layer.options.watch)
    large = too_large(decision.schedule, device, layer.load[1], decl.span)
    return replace(decision, warnings=(*decision.warnings, large)) if large else decision


def check(source: Source, options: Options | None = None) -> tuple[Layer, list[Plan]]:
    """Prove every schedule of a file that says what it wants. Raises EpsError with all faults of the whole file.

    An `auto` schedule is searched for, and each candidate proven, when it is planned.
    """
    faults = Faults()
    layer = _read(source, options or Options(), faults, schedules=True)
    plans: list[Plan] = []
    for decl in layer.schedules if layer else ():
        if layer is None or decl.auto:
            continue
        try:
            if decl.by_load:  # the schedules that it takes are proven as they stand in the file
                ranges_in(layer, decl)
            else:
                plans.append(plan(layer, decl.name))
        except EpsError as error:
            faults.diagnostics += [d for d in error.diagnostics if d not in faults.diagnostics]
    faults.raise_if_any()
    if layer is None:
        raise AssertionError("the layer could not be built, and nobody said why")
    return layer, plans


def write(made: Plan) -> Program:
    """The program of a plan, whole and checked."""
    from epsc.codegen import emit  # noqa: PLC0415 - Jinja is slow to load, and checking needs no program

    layer = made.layer
    # emit verifies what it wrote; to do it here again would take longer than all the passes.
    return emit(
        made.schedule,
        spec_text=layer.source.text,
        version=__version__,
        load=layer.load,
        device=layer.cluster.device,
        settings=layer.options.told,
    )


VERSION = __version__
