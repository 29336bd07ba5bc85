"""asks: what a schedule asks of the lowering itself, before the ops that its other directives speak of are there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from epsc.ir.attrs import RowsAttrs
from epsc.ir.dims import Axis
from epsc.ir.errors import Faults
from epsc.ir.graph import Graph
from epsc.ir.spec import Before, Beside, On, ScheduleDecl, Split, Use
from epsc.passes.numbers import Numbers
from epsc.passes.questions import name_of, needed
from epsc.passes.rooms import rooms_of, slots_of
from epsc.passes.transports import ONE_SIDED, homes_of, named_in, names_of, travels


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
    found = travels(decl, said, vague, faults)
    transports = found.transports
    for name, transport in transports.items() if nodes > 1 else ():
        faults.add(
            "needs",
            f"`{transport.name}` cannot carry `{said.node[name].origin}`: ranks store into each other's memory within a"
            f" node only, and the cluster has {nodes} nodes",
            transport.span,
            help="let rows travel by an all2all: leave `use put` and `use copy` out",
        )
    levels = _by_node(decl, said, nodes, node_ranks, faults)
    rooms = rooms_of(decl, said, transports, numbers, vague, faults)
    slots = slots_of(decl, said, transports, numbers, vague, faults)
    faults.raise_if_any()
    homes = homes_of(said)
    lost = {name for name in transports if name in homes and not homes[name]}
    chosen = {name: transport.name for name, transport in transports.items() if name not in lost}
    copies = frozenset(name for name in chosen if chosen[name] != "copy" and name not in found.wants)
    rooms = {name: room for name, room in rooms.items() if name in chosen}
    gone = frozenset(said.node[name].origin for name in lost)
    sources = _by_source(decl, said, chosen)
    return Asks(chosen, copies, rooms, _apart(decl, said), slots, levels, sources, gone)


def _by_node(decl: ScheduleDecl, said: Graph, nodes: int, node_ranks: int, faults: Faults) -> frozenset[str]:
    """See `Asks.by_node`. Adds a fault where there are not two levels, or where rows do not take both."""
    moves = [node for node in needed(said) if node.kind in ONE_SIDED]
    homes = homes_of(said)
    by_peer = _cut_by_peer(decl)
    found: set[str] = set()
    for use in decl.directives:
        if not isinstance(use, Use) or not any(impl.name == "two_level" for impl in use.impls):
            continue
        for node in named_in(use.targets, moves):
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


def _cut_by_peer(decl: ScheduleDecl) -> set[str]:
    """Names of what a schedule cuts by peer."""
    splits = [each for each in decl.directives if isinstance(each, Split) and each.axis is Axis.PEER]
    return {name for split in splits for name in names_of(split.targets)}


def _by_source(decl: ScheduleDecl, said: Graph, transports: Collection[str]) -> frozenset[str]:
    """What runs on rows as they come: see `Asks.by_source`. Each of them reads nothing else."""
    cut = _cut_by_peer(decl)
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
                names = names_of(directive.targets)
                # Only that kernel has the two in one.
                persistent = any(impl.name == "persistent" for impl in impls)
                if names & (gemm | act) and not (persistent and names & gemm):
                    return True
            case Before(targets, others) | Beside(targets, others):
                these, those = names_of(targets), names_of(others)
                if (these & gemm and those & act) or (these & act and those & gemm):
                    return True
            case Split() | On():
                how = (directive.axis, directive.count) if isinstance(directive, Split) else directive.lane
                for own, ways in zip((gemm, act), placed[type(directive)], strict=True):
                    ways += [how] if names_of(directive.targets) & own else []
    return any(of_gemm and of_act and of_gemm != of_act for of_gemm, of_act in placed.values())
