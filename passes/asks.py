"""asks: what a schedule asks of the lowering itself, before the ops that its other directives speak of are there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from epsc.ir.attrs import RowsAttrs
from epsc.ir.dims import TOKENS, Axis, is_tokens
from epsc.ir.errors import Faults, Note, did_you_mean
from epsc.ir.graph import Graph, Node
from epsc.ir.source import Span
from epsc.ir.spec import (
    Before,
    Beside,
    Dedup,
    LocalReduce,
    Offload,
    On,
    Reserve,
    Room,
    ScheduleDecl,
    Split,
    Target,
    Use,
)
from epsc.passes.numbers import MOST, Numbers
from epsc.passes.questions import name_of, needed, why_not_persistent

ONE_SIDED = {"dispatch": ("put", "copy"), "combine": ("put", "direct")}
"""Transports by which a rank stores into the memory of another; all else is a collective."""


@dataclass(frozen=True)
class Asks:
    """What decides which ops there are."""

    transports: dict[str, str] = field(default_factory=dict)
    """Dispatch or combine -> its one-sided transport; those that are not named here are collectives."""
    copies: frozenset[str] = frozenset()
    """Those of them that move each copy of a token on its own: `put` without `dedup`, or without `local_reduce`, and
    `direct`."""
    rooms: dict[str, float] = field(default_factory=dict)
    """One-sided dispatch -> how many times the rows of balanced routing there is room for."""
    apart: frozenset[str] = frozenset()
    """Activations that stay ops of their own behind an expert gemm, because the schedule chooses an implementation of
    either (other than the one that has both), or asks one thing of the activation and another of the gemm."""
    slots: dict[str, int] = field(default_factory=dict)
    """Expert gemm -> the slots that its weight goes through, which stays in the memory of the host."""
    by_node: frozenset[str] = frozenset()
    """Dispatches whose rows, or those of whose combine, go in two levels: within nodes, and between them."""
    by_source: frozenset[str] = frozenset()
    """Dispatches that are cut by peer, and what is cut so behind them: it runs on rows as they come from each rank."""
    lost: frozenset[str] = frozenset()
    """Of a layer with faults: dispatches (as it names them) that are to be one-sided, whose combine the faults took."""

    def __bool__(self) -> bool:
        return bool(self.transports or self.apart or self.slots or self.by_node or self.by_source)


NOTHING = Asks()


def asks_of(
    decl: ScheduleDecl,
    said: Graph,
    numbers: Numbers,
    vague: frozenset[str] = frozenset(),
    nodes: int = 1,
    node_ranks: int = 1,
) -> Asks:
    """What `decl` chooses of the dispatches, combines and experts of `said`, the graph as the layer says it.

    Raises EpsError for what no transport can do, or none on `nodes` of `node_ranks` ranks each, and for a pair of which
    only one half is one-sided: where it is not decided which ops there are, nobody can say what the other directives
    mean. Of a graph with faults `vague` are the names whose ops may not all be there.
    """
    faults = Faults()
    numbers = numbers.telling(faults)
    found = _found(decl, said, vague, faults)
    transports = found.transports
    for name, transport in transports.items() if nodes > 1 else ():
        faults.add(
            "needs",
            f"`{transport.name}` cannot carry `{said.node[name].origin}`: ranks store into each other's memory within a"
            f" node only, and the cluster has {nodes} nodes",
            transport.span,
            help="let rows travel by an all2all: leave `use put` and `use copy` out",
        )
    by_node = _by_node(decl, said, nodes, node_ranks, faults)
    rooms = _rooms(decl, said, transports, numbers, vague, faults)
    slots = _slots(decl, said, transports, numbers, vague, faults)
    faults.raise_if_any()
    homes = _homes(said)
    lost = {name for name in transports if name in homes and not homes[name]}
    chosen = {name: transport.name for name, transport in transports.items() if name not in lost}
    copies = frozenset(name for name in chosen if chosen[name] != "copy" and name not in found.wants)
    rooms = {name: room for name, room in rooms.items() if name in chosen}
    gone = frozenset(said.node[name].origin for name in lost)
    by_source = _by_source(decl, said, chosen)
    return Asks(chosen, copies, rooms, _apart(decl, said), slots, by_node, by_source, gone)


def _homes(said: Graph) -> dict[str, list[Node]]:
    """The combines that bring home the rows of each dispatch."""
    nodes = needed(said)
    symbols = [(node, said.types[node.ins[0]].shape[0].symbol) for node in nodes if node.kind == "combine"]
    return {
        node.name: [home for home, symbol in symbols if symbol == f"rows({node.name})"]
        for node in nodes
        if node.kind == "dispatch"
    }


@dataclass(frozen=True)
class _Transport:
    name: str
    span: Span | None


@dataclass(frozen=True)
class _Found:
    """What a schedule says of how rows travel, by dispatch or combine."""

    transports: dict[str, _Transport]
    """The one-sided ones."""
    wants: dict[str, Dedup | LocalReduce]


def _found(decl: ScheduleDecl, said: Graph, vague: frozenset[str], faults: Faults) -> _Found:
    moves = [node for node in needed(said) if node.kind in ONE_SIDED]
    collectives: dict[str, _Transport] = {}
    transports: dict[str, _Transport] = {}
    wants: dict[str, Dedup | LocalReduce] = {}
    for directive in decl.directives:
        match directive:
            case Use():
                _choose(directive, moves, transports, collectives, faults)
            case Dedup() | LocalReduce():
                word, kind = ("dedup", "dispatch") if isinstance(directive, Dedup) else ("local_reduce", "combine")
                _check_kind(directive.targets, word, kind, said, vague, faults)
                for node in _named(directive.targets, moves):
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
    for name, homes in _homes(said).items():
        _check_pair(said.node[name], homes, transports, faults)
    for directive in decl.directives:
        if isinstance(directive, Reserve):
            _check_reserve(directive, moves, transports, faults)
    return _Found(transports, wants)


def _meshed(said: Graph, node: Node) -> bool:
    """Whether ranks share experts or tokens of a dispatch or combine."""
    counts = [said.types[value].shape[0] for value in node.ins]
    shares = any(is_tokens(count.symbol) and count != TOKENS for count in counts)
    return shares or (isinstance(node.attrs, RowsAttrs) and node.attrs.etp > 1)


def _check_kind(
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


def _rooms(
    decl: ScheduleDecl,
    said: Graph,
    transports: dict[str, _Transport],
    numbers: Numbers,
    vague: frozenset[str],
    faults: Faults,
) -> dict[str, float]:
    """What `room` asks for, by dispatch."""
    found: dict[str, float] = {}
    spans: dict[str, Span | None] = {}
    for room in decl.directives:
        if not isinstance(room, Room):
            continue
        _check_kind(room.targets, "room", "dispatch", said, vague, faults)
        factor = numbers.of(room.factor)
        if factor is not None and not 1 <= factor <= MOST:
            faults.add(
                "bad-number",
                f"room for {factor} times the rows of balanced routing: that must be at least 1, or balanced routing"
                " overflows it",
                room.span,
                help="leave out the `room`: without it there is room for every copy of every token",
            )
        for node in _named(room.targets, [node for node in needed(said) if node.kind == "dispatch"]):
            if node.name in spans:
                faults.add(
                    "room-twice",
                    f"the room for `{node.origin}` is said twice",
                    room.span,
                    notes=[Note("first here", spans[node.name])],
                )
            elif node.name not in transports:
                faults.add(
                    "collective",
                    f"`room` for `{node.origin}` has nothing to bound: an all2all takes memory for the rows that come",
                    room.span,
                    help=f"add `use put for {node.origin}`, or leave out the `room`",
                )
            spans.setdefault(node.name, room.span)
            if factor is not None:
                found[node.name] = float(factor)
    return found


def _slots(
    decl: ScheduleDecl,
    said: Graph,
    transports: dict[str, _Transport],
    numbers: Numbers,
    vague: frozenset[str],
    faults: Faults,
) -> dict[str, int]:
    """What `offload` asks for, by expert gemm."""
    gemms: dict[str, list[Node]] = {}
    for node in needed(said):
        if node.kind == "expert_gemm":
            gemms.setdefault(name_of(node), []).append(node)
    found: dict[str, int] = {}
    spans: dict[str, Span | None] = {}
    for offload in decl.directives:
        if not isinstance(offload, Offload):
            continue
        for node in (node for target in offload.targets for node in gemms.get(target.name, ())):
            dispatch = said.types[node.ins[0]].shape[0].symbol[len("rows(") : -1]
            if getattr(said.node[dispatch].attrs, "etp", 1) > 1:
                faults.add(
                    "offload-shared",
                    f"`{name_of(node)}` is cut over the ranks of etp: a slot holds the whole weight of an expert",
                    offload.span,
                    help="leave out the `offload`, or etp",
                )
            if dispatch in transports:
                faults.add(
                    "split-one-sided",
                    f"the experts of `{name_of(node)}` cannot be taken one at a time: rows that travel one-sided"
                    " lie in one piece",
                    offload.span,
                    help="leave out the `offload`, or let an all2all move the rows",
                )
        slots = numbers.whole(offload.slots, "the number of slots")
        for target in offload.targets:
            if target.name not in gemms and target.name not in vague:
                faults.add(
                    "not-an-expert-weight",
                    f"`{target.name}` is no weight of experts: `offload` brings them one expert at a time",
                    target.span,
                    help=did_you_mean(target.name, gemms),
                )
            elif target.name in spans:
                notes = [Note("first here", spans[target.name])]
                faults.add("offload-twice", f"`{target.name}` is offloaded twice", target.span, notes=notes)
            spans.setdefault(target.name, target.span)
            found |= {node.name: slots or 1 for node in gemms.get(target.name, ())}
    return found


def _choose(
    use: Use,
    moves: list[Node],
    transports: dict[str, _Transport],
    collectives: dict[str, _Transport],
    faults: Faults,
) -> None:
    """Note what a `use` says of transports."""
    names = {impl.name for impl in use.impls}
    one_sided = names & {"put", "copy", "direct"}
    for node in _named(use.targets, moves):
        chosen = _Transport(use.impls[0].name, use.span)
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


def _check_rows(node: Node, transport: _Transport | None, wanted: Dedup | LocalReduce | None, faults: Faults) -> None:
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
    node: Node, said: Graph, transport: _Transport, wanted: Dedup | LocalReduce | None, faults: Faults
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


def _check_pair(dispatch: Node, homes: list[Node], transports: dict[str, _Transport], faults: Faults) -> None:
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


def _check_reserve(reserve: Reserve, moves: list[Node], transports: dict[str, _Transport], faults: Faults) -> None:
    """SMs for what needs none."""
    for target in reserve.targets:
        for node in _named((target,), moves):
            if node.name in transports and transports[node.name].name == "copy":
                faults.add(
                    "reserve",
                    f"`{node.origin}` travels by copy engines, which need no SMs: there is nothing to reserve",
                    target.span,
                    help=f"leave `{node.origin}` out of the `reserve`",
                )


def _by_node(decl: ScheduleDecl, said: Graph, nodes: int, node_ranks: int, faults: Faults) -> frozenset[str]:
    """See `Asks.by_node`. Adds a fault where there are not two levels, or where rows do not take both."""
    moves = [node for node in needed(said) if node.kind in ONE_SIDED]
    homes = _homes(said)
    by_peer = {
        t.name for each in decl.directives if isinstance(each, Split) and each.axis is Axis.PEER for t in each.targets
    }
    found: set[str] = set()
    for use in decl.directives:
        if not isinstance(use, Use) or not any(impl.name == "two_level" for impl in use.impls):
            continue
        for node in _named(use.targets, moves):
            attrs = node.attrs
            assert isinstance(attrs, RowsAttrs)
            cannot = f"`two_level` cannot carry `{node.origin}`: "
            if nodes == 1 or node_ranks == 1:
                has = "one node" if nodes == 1 else f"{nodes} nodes of one rank each"
                why = f"it goes within nodes and between them, and the cluster has {has}"
                way = "say how many `nodes` the cluster has, several ranks on each; or leave out the `use`"
                faults.add("needs", cannot + why, use.span, help=way)
            elif attrs.etp > 1:
                why = "the ranks of a node share experts, and rows go on to them already"
                faults.add("needs", cannot + why, use.span, help="leave out the `use`, or set etp to 1")
            elif node.origin in by_peer:
                why = "cut by peer, a piece goes to one rank, on one way"
                faults.add("needs", cannot + why, use.span, help="leave out the `use`, or cut it otherwise")
            elif use.whens:
                why = "all ranks send on one way, and a number that each has of its own cannot choose it"
                way = f"`use two_level for {node.origin}`, or a schedule for each"
                faults.add("transport-by-load", cannot + why, use.span, help=way)
            found |= {node.name} if node.kind == "dispatch" else {d for d, ways in homes.items() if node in ways}
    return frozenset(found)


def _by_source(decl: ScheduleDecl, said: Graph, transports: Collection[str]) -> frozenset[str]:
    """What runs on rows as they come: see `Asks.by_source`. Each of them reads nothing else."""
    cut = {
        t.name for each in decl.directives if isinstance(each, Split) and each.axis is Axis.PEER for t in each.targets
    }
    found: set[str] = set()
    for node in said.nodes:
        named = bool(cut & {node.origin, name_of(node)})
        if node.kind == "dispatch":
            # Where ranks share experts, rows go on from each to the others before anything runs on them.
            follows = node.name not in transports and not (isinstance(node.attrs, RowsAttrs) and node.attrs.etp > 1)
        else:
            before = said.maker.get(node.ins[0]) if node.ins else None
            follows = node.kind in ("expert_gemm", "activation") and before is not None and before.name in found
        if named and follows:
            found.add(node.name)
    return frozenset(found)


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
