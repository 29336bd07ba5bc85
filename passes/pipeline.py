"""The compiler on one page: the passes, in order, and why they stand where they stand."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from epsc.ir.errors import Diagnostic, EpsError, Faults, did_you_mean
from epsc.ir.graph import Graph
from epsc.ir.schedule import Schedule
from epsc.ir.text import attrs_parse, split
from epsc.passes.asks import NOTHING, Asks
from epsc.passes.buffers import Buffers
from epsc.passes.canonicalise import Canonicalise
from epsc.passes.choose import Choose
from epsc.passes.chunk import Chunk
from epsc.passes.fuse import Fuse
from epsc.passes.moefy import Moefy
from epsc.passes.order import Order
from epsc.passes.place import Place
from epsc.passes.synchronise import Synchronise
from epsc.passes.wishes import Context, Wishes
from epsc.proof.happens import Happens
from epsc.proof.verify import prove

# `build` (Spec -> Graph) comes before all of these: it is the bridge that has to know the file.
SAID_PASSES = (
    Moefy(),  # before the directives of a schedule are looked at: it makes the dispatches that they may speak of
)
GRAPH_PASSES = (
    Canonicalise(),  # first: what follows knows only lowered ops
    Fuse(),  # before choosing: a fused op is another op, with implementations of its own
)
# Here directives are resolved against the lowered Graph: they name bindings, which every op remembers.
SCHEDULE_PASSES = (
    Choose(),  # Graph -> Schedule
    Chunk(),  # before lanes and order: both look at chunks
    Place(),  # before order: who shares a lane decides how far dispatch may run ahead
    Order(),  # before synchronise: a wait is needed or not depending on what is issued before what
    Synchronise(),  # before buffers: memory is shared only where order is guaranteed already, which adds no wait
    Buffers(),  # last: it needs to know exactly who may run at the same time
)
Pass = Moefy | Canonicalise | Fuse | Choose | Chunk | Place | Order | Synchronise | Buffers
PIPELINE: tuple[Pass, ...] = (*SAID_PASSES, *GRAPH_PASSES, *SCHEDULE_PASSES)

Watcher = Callable[[str, Graph | Schedule, float], None]
"""Called after every pass, with its name, what it made and the seconds it took (proof included)."""


@dataclass(frozen=True)
class Decision:
    """A proven Schedule, and what the proof warns of."""

    schedule: Schedule
    warnings: tuple[Diagnostic, ...]


def rewritten(said: Graph, pipeline: tuple[Pass, ...] = PIPELINE, watch: Watcher | None = None) -> Graph:
    """Run the passes on what a layer says. Raises EpsError for what they cannot rewrite."""
    for each in pipeline:
        if isinstance(each, Moefy):
            start = time.perf_counter()
            said = each(said)
            with _blame(each):
                said.verify()
            if watch:
                watch(each.name, said, time.perf_counter() - start)
    return said


def lower(
    graph: Graph, pipeline: tuple[Pass, ...] = PIPELINE, watch: Watcher | None = None, asks: Asks = NOTHING
) -> Graph:
    """Run the Graph passes, for what a schedule asks of them. Raises EpsError naming the pass that broke an
    invariant."""
    for each in pipeline:
        if isinstance(each, Canonicalise | Fuse):
            start = time.perf_counter()
            graph = each(graph, asks)
            with _blame(each):
                graph.verify()
            if watch:
                watch(each.name, graph, time.perf_counter() - start)
    return graph


def decide(
    graph: Graph, context: Context, pipeline: tuple[Pass, ...] = PIPELINE, watch: Watcher | None = None
) -> Decision:
    """Run the Schedule passes on a lowered Graph, with a proof after each. Raises EpsError."""
    subject: Any = graph
    warnings: list[Diagnostic] = []
    for each in pipeline:
        if isinstance(each, Moefy | Canonicalise | Fuse):
            continue
        start = time.perf_counter()
        subject = each(subject, context)
        with _blame(each):
            warnings = prove(subject)
        if watch:
            watch(each.name, subject, time.perf_counter() - start)
    faults = Faults()
    _check_besides(subject, context.wishes, faults)
    faults.raise_if_any()
    return Decision(subject, tuple(warnings))


@contextmanager
def _blame(culprit: Pass) -> Iterator[None]:
    """What fails in here is a fault of the pass, not of the user: say which."""
    try:
        yield
    except EpsError as error:
        raise EpsError(
            *(replace(d, message=f"after pass `{culprit.name}`: {d.message}") for d in error.diagnostics)
        ) from None


def _check_besides(schedule: Schedule, wishes: Wishes, faults: Faults) -> None:
    """`run A beside B` is a promise: some step of A must be free to run at the same time as some step of B."""
    if not wishes.overlap:
        return
    happens = Happens.of(schedule)
    steps: dict[str, list[str]] = {}
    for step in schedule.steps:
        steps.setdefault(step.node, []).append(step.key)
    for wish in wishes.besides:
        pairs = ((a, b) for x in wish.these for y in wish.others for a in steps[x] for b in steps[y])
        if not any(happens.beside(a, b) for a, b in pairs):
            origins = [schedule.graph.node[names[0]].origin for names in (wish.these, wish.others)]
            faults.add(
                "not-beside",
                f"`{origins[0]}` cannot run beside `{origins[1]}`: data or lanes put one after the other",
                wish.span,
                help="name an op that needs nothing of the other, or split both, so that a chunk of one can run beside"
                " another chunk of the other",
            )


def configured(text: str) -> tuple[Pass, ...]:
    """The pipeline with options set, as `-p "chunk{n=4},place"` says. Raises EpsError on an unknown name or value."""
    options: dict[str, Pass] = {}
    known = {each.name: each for each in PIPELINE}
    for piece in split(text, ","):
        shape = re.fullmatch(r"(\w*)(?:\{([^{}]*)\})?", piece)
        name = shape[1] if shape else piece.partition("{")[0]
        if name not in known:
            raise EpsError(Diagnostic("unknown-pass", f"there is no pass `{name}`", help=did_you_mean(name, known)))
        if not shape:
            raise EpsError(Diagnostic("bad-value", f"`{piece}` should read `{name}{{option=value}}`"))
        if name in options:
            raise EpsError(Diagnostic("bad-value", f"options of `{name}` are given twice"))
        try:
            options[name] = attrs_parse(type(known[name]), shape[2] or "")
        except EpsError as error:
            found = (replace(each, message=f"`{piece}`: {each.message}") for each in error.diagnostics)
            raise EpsError(*found) from None
        for option, value in vars(options[name]).items():
            if isinstance(value, int) and value < 0:
                raise EpsError(Diagnostic("bad-value", f"`{name}{{{option}={value}}}` must be at least 0"))
    return tuple(options.get(each.name, each) for each in PIPELINE)
