"""asks: what a schedule asks of the lowering itself, before the ops that its other directives speak of are there."""

from __future__ import annotations

from dataclasses import dataclass, field

from epsc.ir.errors import Faults, Note, did_you_mean
from epsc.ir.graph import Graph, Node
from epsc.ir.source import Span
from epsc.ir.spec import Before, Beside, Dedup, LocalReduce, On, ScheduleDecl, Split, Target, Use
from epsc.passes.questions import name_of

ONE_SIDED = {"dispatch": ("put", "copy"), "combine": ("put",)}
"""Transports by which a rank stores into the memory of another; all else is a collective."""


@dataclass(frozen=True)
class Asks:
    """What decides which ops there are."""

    transports: dict[str, str] = field(default_factory=dict)
    """Dispatch or combine -> its one-sided transport; those that are not named here are collectives."""
    apart: frozenset[str] = frozenset()
    """Activations that stay ops of their own behind an expert gemm, because the schedule chooses an implementation of
    either (other than the one that has both), or asks one thing of the activation and another of the gemm."""

    def __bool__(self) -> bool:
        return bool(self.transports or self.apart)


NOTHING = Asks()


def asks_of(decl: ScheduleDecl, said: Graph, faults: Faults) -> Asks:
    """What `decl` chooses of the dispatches, combines and experts of `said`, the graph as the layer says it.

    Adds a fault for a pair of which only one half is one-sided, and for what no transport can do.
    """
    moves = [node for node in said.nodes if node.kind in ONE_SIDED]
    transports: dict[str, str] = {}
    spans: dict[str, Span | None] = {}
    wants: dict[str, Dedup | LocalReduce] = {}
    for directive in decl.directives:
        match directive:
            case Use():
                names = {impl.name for impl in directive.impls} & {"put", "copy"}
                for node in _named(directive.targets, moves) if names else ():
                    name = directive.impls[0].name
                    if directive.whens:
                        faults.add(
                            "transport-by-load",
                            f"how `{node.origin}` travels decides which ops there are, and cannot change with the load",
                            directive.span,
                            help="write two schedules, and choose between them",
                        )
                    elif name in ONE_SIDED[node.kind]:
                        transports[node.name], spans[node.name] = name, directive.span
                    else:
                        faults.add(
                            "transport",
                            f"`{name}` cannot bring the rows of `{node.origin}` home: `copy` sends all rows of a rank"
                            " to all others",
                            directive.span,
                            help=f"`use put for {node.origin}`",
                        )
            case Dedup() | LocalReduce():
                word, kind = ("dedup", "dispatch") if isinstance(directive, Dedup) else ("local_reduce", "combine")
                known = {node.origin for node in moves if node.kind == kind}
                for target in directive.targets:
                    if target.name not in known:
                        faults.add(
                            f"not-a-{kind}",
                            f"`{target.name}` is no {kind}: nothing can be done by `{word}`",
                            target.span,
                            help=did_you_mean(target.name, known),
                        )
                for node in _named(directive.targets, moves):
                    wants[node.name] = directive
    for node in moves:
        _check(node, transports, spans, wants, said, faults)
    return Asks(transports, _apart(decl, said))


def _apart(decl: ScheduleDecl, said: Graph) -> frozenset[str]:
    """The activations behind expert gemms that `decl` keeps apart from these: see `Asks.apart`."""
    found: set[str] = set()
    for node in said.nodes:
        gemm = said.maker.get(node.ins[0]) if node.kind == "activation" else None
        if gemm and gemm.kind == "expert_gemm" and _parts(decl, {gemm.origin, name_of(gemm)}, {node.origin}):
            found.add(node.name)
    return frozenset(found)


def _parts(decl: ScheduleDecl, gemm: set[str], act: set[str]) -> bool:
    """Whether directives ask for what a gemm (by its names) and its activation can be as two ops only."""
    placed: dict[type, tuple[list[object], list[object]]] = {Split: ([], []), On: ([], [])}
    for directive in decl.directives:
        match directive:
            case Use(impls):
                names = _names(directive.targets)
                # Only that kernel has the two in one.
                persistent = any(impl.name == "persistent" for impl in impls)
                if names & (gemm | act) and not (persistent and names & gemm):
                    return True
            case Before(targets, others) | Beside(targets, others):
                these, those = _names(targets), _names(others)
                if (these & gemm and those & act) or (these & act and those & gemm):
                    return True
            case Split() | On():
                how = (directive.axis, directive.count) if isinstance(directive, Split) else directive.lane
                for own, ways in zip((gemm, act), placed[type(directive)], strict=True):
                    ways += [how] if _names(directive.targets) & own else []
    return any(of_gemm and of_act and of_gemm != of_act for of_gemm, of_act in placed.values())


def _names(targets: tuple[Target, ...]) -> set[str]:
    return {target.name for target in targets}


def _named(targets: tuple[Target, ...], moves: list[Node]) -> list[Node]:
    return [node for node in moves if node.origin in _names(targets)]


def _check(
    node: Node,
    transports: dict[str, str],
    spans: dict[str, Span | None],
    wants: dict[str, Dedup | LocalReduce],
    said: Graph,
    faults: Faults,
) -> None:
    """One-sided transfers come in pairs, and say what they do to rows."""
    word = "dedup" if node.kind == "dispatch" else "local_reduce"
    transport, wanted = transports.get(node.name), wants.get(node.name)
    if wanted and transport is None:
        faults.add(
            "collective",
            f"`{word} {node.origin}` needs a transport that stores into the memory of other ranks",
            wanted.span,
            help=f"`use put for {node.origin}`",
        )
    if transport == "put" and wanted is None:
        faults.add(
            "one-row-per-token",
            f"`put` sends {'a token' if node.kind == 'dispatch' else 'one sum for a token'} once between two ranks, and"
            f" so needs `{word} {node.origin}`",
            spans[node.name],
            help=f"add `{word} {node.origin}`",
        )
    if node.kind == "combine":
        symbol = said.types[node.ins[0]].shape[0].symbol
        dispatch = said.node[symbol[len("rows(") : -1]]
        if (transport is None) != (dispatch.name not in transports):
            lacks, has = (node, dispatch) if transport is None else (dispatch, node)
            faults.add(
                "half-one-sided",
                f"`{has.origin}` is one-sided and `{lacks.origin}` is not: the two share where rows lie",
                spans[has.name],
                help=f"`use put for {lacks.origin}`",
                notes=[Note(f"`{lacks.origin}` is here", lacks.span)],
            )
