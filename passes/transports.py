"""Transports: how a schedule says that rows travel, by which a rank stores into the memory of another or not."""

from __future__ import annotations

from dataclasses import dataclass

from epsc.ir.attrs import RowsAttrs
from epsc.ir.dims import TOKENS, is_tokens
from epsc.ir.errors import Faults, Note, did_you_mean
from epsc.ir.graph import Graph, Node
from epsc.ir.source import Span
from epsc.ir.spec import Dedup, LocalReduce, Reserve, ScheduleDecl, Target, Use
from epsc.passes.questions import name_of, needed, why_not_persistent

ONE_SIDED = {"dispatch": ("put", "copy"), "combine": ("put", "direct")}
"""Transports by which a rank stores into the memory of another; all else is a collective."""


def homes_of(said: Graph) -> dict[str, list[Node]]:
    """The combines that bring home the rows of each dispatch."""
    nodes = needed(said)
    symbols = [(node, said.types[node.ins[0]].shape[0].symbol) for node in nodes if node.kind == "combine"]
    return {
        node.name: [home for home, symbol in symbols if symbol == f"rows({node.name})"]
        for node in nodes
        if node.kind == "dispatch"
    }


@dataclass(frozen=True)
class Transport:
    name: str
    span: Span | None


@dataclass(frozen=True)
class Travels:
    """What a schedule says of how rows travel, by dispatch or combine."""

    transports: dict[str, Transport]
    """The one-sided ones."""
    wants: dict[str, Dedup | LocalReduce]


def travels(decl: ScheduleDecl, said: Graph, vague: frozenset[str], faults: Faults) -> Travels:
    moves = [node for node in needed(said) if node.kind in ONE_SIDED]
    collectives: dict[str, Transport] = {}
    transports: dict[str, Transport] = {}
    wants: dict[str, Dedup | LocalReduce] = {}
    for directive in decl.directives:
        match directive:
            case Use():
                _choose(directive, moves, transports, collectives, faults)
            case Dedup() | LocalReduce():
                word, kind = ("dedup", "dispatch") if isinstance(directive, Dedup) else ("local_reduce", "combine")
                check_kind(directive.targets, word, kind, said, vague, faults)
                for node in named_in(directive.targets, moves):
                    wants[node.name] = directive
    for node in moves:
        _check_rows(node, transports.get(node.name), wants.get(node.name), faults)
        if node.name in transports and transports[node.name].name == "direct" and node.kind == "combine":
            _check_direct(node, said, transports[node.name], wants.get(node.name), faults)
    for node in moves:
        if node.name in transports and _meshed(said, node):
            faults.add(
                "one-sided-meshes",
                f"`{node.origin}` cannot travel one-sided: that is among ranks with tokens and experts of their own",
                transports[node.name].span,
                help="leave out the `use`, or `etp` and `split_tokens`",
            )
    for name, homes in homes_of(said).items():
        _check_pair(said.node[name], homes, transports, faults)
    for directive in decl.directives:
        if isinstance(directive, Reserve):
            _check_reserve(directive, moves, transports, faults)
    return Travels(transports, wants)


def _meshed(said: Graph, node: Node) -> bool:
    """Whether ranks share experts or tokens of a dispatch or combine."""
    counts = [said.types[value].shape[0] for value in node.ins]
    shares = any(is_tokens(count.symbol) and count != TOKENS for count in counts)
    return shares or (isinstance(node.attrs, RowsAttrs) and node.attrs.etp > 1)


def check_kind(
    targets: tuple[Target, ...], word: str, kind: str, said: Graph, vague: frozenset[str], faults: Faults
) -> None:
    """What a directive speaks of is a dispatch, or a combine."""
    known = {node.origin for node in said.nodes if node.kind == kind}
    for target in targets:
        if target.name not in known | vague:
            faults.add(
                f"not-a-{kind}",
                f"`{target.name}` is no {kind}: there is nothing that `{word}` could do",
                target.span,
                help=did_you_mean(target.name, known),
            )


def _choose(
    use: Use,
    moves: list[Node],
    transports: dict[str, Transport],
    collectives: dict[str, Transport],
    faults: Faults,
) -> None:
    """Note what a `use` says of transports."""
    names = {impl.name for impl in use.impls}
    one_sided = names & {"put", "copy", "direct"}
    for node in named_in(use.targets, moves):
        chosen = Transport(use.impls[0].name, use.span)
        before, others = (transports, collectives) if one_sided else (collectives, transports)
        if not one_sided and not names & {"nccl", "gloo", "two_level"}:
            continue  # of the experts, or of the sum, of the same statement
        if first := others.get(node.name) or (transports.get(node.name) if one_sided else None):
            faults.add(
                "use-twice",
                f"how `{node.origin}` travels is chosen twice",
                use.span,
                notes=[Note("first here", first.span)],
            )
        elif one_sided and isinstance(node.attrs, RowsAttrs) and node.attrs.selective:
            faults.add(
                "transport",
                f"`{chosen.name}` cannot move the rows of `{node.origin}`: it sends every copy of a token,"
                " and here some go nowhere",
                use.span,
                help="leave it out: an all2all sends what there is to send",
            )
        elif one_sided and use.whens:
            faults.add(
                "transport-by-load",
                f"how `{node.origin}` travels decides which ops there are, and cannot change with the load",
                use.span,
                help="write a schedule for each transport, and a program of each",
            )
        elif one_sided and chosen.name not in ONE_SIDED[node.kind]:
            why = f"bring the rows of `{node.origin}` home: a copy engine sums nothing"
            if node.kind == "dispatch":
                why = f"take the rows of `{node.origin}` to their experts: no product makes them"
            faults.add("transport", f"`{chosen.name}` cannot {why}", use.span, help=f"`use put for {node.origin}`")
        before.setdefault(node.name, chosen)


def _check_rows(node: Node, transport: Transport | None, wanted: Dedup | LocalReduce | None, faults: Faults) -> None:
    """An all2all sends each copy of a token, and brings each home."""
    word = "dedup" if node.kind == "dispatch" else "local_reduce"
    if wanted and transport is None:
        faults.add(
            "collective",
            f"`{word} {node.origin}` needs a transport that stores into the memory of other ranks: an all2all does not",
            wanted.span,
            help=f"add `use put for {node.origin}`",
        )


def _check_direct(
    node: Node, said: Graph, transport: Transport, wanted: Dedup | LocalReduce | None, faults: Faults
) -> None:
    """A product can store the rows that it makes at home if it makes all of them for that, and nobody sums them."""
    gemm = said.maker.get(node.ins[0])
    if wanted:
        why = "they are summed on the rank of their experts first"
        help = f"leave out `local_reduce {node.origin}`, or `use put for {node.origin}`"
        notes = [Note("here", wanted.span)]
    else:
        help, notes = f"`use put for {node.origin}`", []
        if gemm is None or gemm.kind != "expert_gemm":
            why = "what makes them is no `gemm` of the experts"
        elif said.users[node.ins[0]] != [node] or node.ins[0] in said.results:
            why = f"others read what `{name_of(gemm)}` makes, too"
        elif not (why := why_not_persistent(said, gemm)):
            return
        else:
            why = f"only the persistent product can, and {why}"
    faults.add(
        "direct",
        f"no product can store the rows of `{node.origin}` at home itself: {why}",
        transport.span,
        notes=notes,
        help=help,
    )


def _check_pair(dispatch: Node, homes: list[Node], transports: dict[str, Transport], faults: Faults) -> None:
    """A dispatch and what brings its rows home are one-sided both or neither: the two share where rows lie."""
    ways = [transports.get(node.name) for node in (dispatch, *homes)]
    if not any(ways):
        return
    span = next(way.span for way in ways if way)
    if len(homes) > 1:
        faults.add(
            "one-combine",
            f"`{dispatch.origin}` has {len(homes)} combines, and rows that travel one-sided can have one",
            span,
            notes=[Note(f"`{node.origin}` is here", node.span) for node in homes],
            help="leave out `use put` and `use copy`: an all2all moves rows for any number of combines",
        )
    elif homes and not all(ways):
        lacks, has = (homes[0], dispatch) if ways[0] else (dispatch, homes[0])
        ways_of_it = " or ".join(
            f"`use {name} for {lacks.origin}`" for name in ONE_SIDED[lacks.kind] if name != "direct"
        )
        faults.add(
            "half-one-sided",
            f"`{has.origin}` is one-sided and `{lacks.origin}` is not: the two share where rows lie",
            span,
            help=f"add {ways_of_it}",
            notes=[Note(f"`{lacks.origin}` is here", lacks.span)],
        )


def _check_reserve(reserve: Reserve, moves: list[Node], transports: dict[str, Transport], faults: Faults) -> None:
    """SMs for what needs none."""
    for target in reserve.targets:
        for node in named_in((target,), moves):
            if node.name in transports and transports[node.name].name == "copy":
                faults.add(
                    "reserve",
                    f"`{node.origin}` travels by copy engines, which need no SMs: there is nothing to reserve",
                    target.span,
                    help=f"leave `{node.origin}` out of the `reserve`",
                )


def names_of(targets: tuple[Target, ...]) -> set[str]:
    return {target.name for target in targets}


def named_in(targets: tuple[Target, ...], moves: list[Node]) -> list[Node]:
    return [node for node in moves if node.origin in names_of(targets)]
