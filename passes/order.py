"""order: the sequence in which the host issues the steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import pairwise
from typing import ClassVar

from epsc.ir.attrs import Direction, SlotAttrs, TransferAttrs
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.graph import Graph, Node
from epsc.ir.kinds import Role
from epsc.ir.regions import Regions
from epsc.ir.schedule import Schedule, Stage, Step
from epsc.passes.place import COMPUTE_LANE
from epsc.passes.questions import SUMS, is_dispatch, slot_before
from epsc.passes.wishes import Context, Wishes

# When a step would like to be issued, in chunks: chunk i of the experts' work is due at time i.
_EARLY = -4.0  # routing and what dispatch needs
_HOST = -3.0  # after everything that can run while the counts travel
_FIRST_DISPATCH = -2.0
_ARRANGE = -1.5
_BESIDE = -1.0  # after the first dispatches are on their way, before the experts want the compute lane
_COMBINE = 0.5  # a chunk's combine follows its experts' work
_BESIDE_COMBINE = 0.75  # after the last combine is on its way
_HOME = 1.25  # and is summed after the next chunk's work, or the compute lane would wait for the combine
_ADDEND = 1.0  # what a sum of chunks starts from: before the first of them, or none could be summed until the end
_KNOWN_AHEAD = -1.75  # counts of a later dispatch, of a routing that is an input: behind the first, beside its experts
_HOST_AHEAD = 0.25  # and the host stops for them once it has issued what those experts do first
_REST = 1e6

_EXPERTS_WORK = ("regroup", "ungroup", "expand", "expert_gemm", "expert_gemm_act")
"""Kinds that stand between dispatch and combine in every layer, cut or not."""

_SUMS_AT_HOME = ("unpermute", "unpermute_sum", "weighted_sum", "sum_ranks", "sum_copies")


@dataclass(frozen=True)
class Order:
    """Issue steps in an order that data allows and that starts transfers early.

    A priority topological sort. Dispatches go first, `prefetch` chunks ahead of the experts' work (all of them when
    combines have a lane of their own: nothing queues behind them); the host stops for the counts only after everything
    that can run meanwhile is issued; what runs `beside` a transfer is issued right after it.
    """

    name: ClassVar[str] = "order"

    prefetch: int = 0
    """Chunks by which dispatch runs ahead; 0: all when it has its lane for itself, else 2."""

    def __call__(self, schedule: Schedule, context: Context) -> Schedule:
        after, blocked = _dependencies(schedule)
        due = self._due(schedule, context.wishes)
        place = {node.name: i for i, node in enumerate(schedule.graph.nodes)}
        ready: list[tuple[float, int, int]] = []
        for i, step in enumerate(schedule.steps):
            if not blocked[i]:
                heappush(ready, (due[i], place[step.node], i))
        ordered = []
        while ready:
            _, _, i = heappop(ready)
            ordered.append(schedule.steps[i])
            for j in after[i]:
                blocked[j] -= 1
                if not blocked[j]:
                    heappush(ready, (due[j], place[schedule.steps[j].node], j))
        if len(ordered) < len(schedule.steps):
            raise EpsError(*_contradictions(schedule, context.wishes))
        return replace(schedule, stage=Stage.ORDERED, steps=tuple(ordered))

    def _due(self, schedule: Schedule, wishes: Wishes) -> list[float]:
        graph = schedule.graph
        beside: dict[str, float] = {}
        waiting: dict[str, float] = {}
        """What those need, which nobody speaks of: no later than they, or they would wait for it."""
        for wish in wishes.besides:
            moves = [graph.node[name] for name in wish.others if graph.node[name].info.moves_rows]
            brings = bool(moves) and all(map(_goes_home, moves))
            when = _BESIDE_COMBINE if brings else _BESIDE
            for name in wish.these:
                beside[name] = when
                waiting[name] = min(when, waiting.get(name, when))
        for node in reversed(graph.nodes):  # in one pass: a stack has as many of them as layers
            for maker in {graph.maker[value].name for value in node.ins if value in graph.maker}:
                if node.name in waiting:
                    waiting[maker] = min(waiting[node.name], waiting.get(maker, waiting[node.name]))
        moving = [(s.lane, graph.node[s.node]) for s in schedule.steps if graph.node[s.node].info.moves_rows]
        combining = {lane for lane, node in moving if not is_dispatch(node)}
        needed_early, addends = _feeds_dispatch(schedule), _feeds_sums(schedule)
        ahead_of_time = _known_ahead(schedule)

        def due(step: Step) -> float:
            node = graph.node[step.node]
            chunk = step.cuts[0].index if step.cuts else 0
            if node.name in ahead_of_time:
                return _HOST_AHEAD if node.info.role is Role.HOST else _KNOWN_AHEAD
            if node.info.role is Role.HOST:
                return _HOST
            if is_dispatch(node):
                ahead = self.prefetch or (2 if step.lane in combining and step.lane != COMPUTE_LANE else 0)
                return max(_FIRST_DISPATCH, chunk - ahead - 0.5) if ahead else _FIRST_DISPATCH
            if isinstance(node.attrs, SlotAttrs):
                return float(chunk - node.attrs.slots)  # as soon as its slot is free
            if node.kind in ("arrange", "locate"):
                return _ARRANGE
            if node.name in beside:
                return beside[node.name]
            if node.info.moves_rows:
                return chunk + _COMBINE
            if step.cuts and node.kind in _SUMS_AT_HOME:
                return chunk + _HOME
            if node.kind in _EXPERTS_WORK or _is_routed(graph, node):
                return float(chunk)
            # Only now: in a stack all of a layer feeds the next one's dispatch, but its chunks keep their turns.
            if node.name in needed_early:
                return _EARLY
            if node.name in addends:
                return _ADDEND
            return float(chunk) if step.cuts else waiting.get(node.name, _REST)

        return list(map(due, schedule.steps))


def _contradictions(schedule: Schedule, wishes: Wishes) -> list[Diagnostic]:
    """A diagnostic for each `run .. before ..` that data, or another such line, forbids."""
    graph = schedule.graph
    by_data = {node.name: {graph.maker[v].name for v in node.ins if v in graph.maker} for node in graph.nodes}
    by_all = {name: set(needs) for name, needs in by_data.items()}
    for first, then in schedule.order:
        by_all[then].add(first)
    found = []
    for wish in wishes.befores:
        for first, then in wish.pairs:
            if not _needs(by_all, first, then):
                continue
            a, b = (f"`{graph.node[name].origin}`" for name in (first, then))
            forced = _needs(by_data, first, then)
            why = f"it needs what {b} makes" if forced else f"another line, with what data needs, puts {b} first"
            found.append(
                Diagnostic(
                    "impossible-order",
                    f"{a} cannot run before {b}: {why}",
                    wish.span,
                    help=f"did you mean `run {b[1:-1]} before {a[1:-1]}`?" if forced else "delete one of the lines",
                )
            )
            break
    return found


def _needs(before: dict[str, set[str]], name: str, other: str) -> bool:
    """Whether `other` must come before `name`."""
    seen: set[str] = set()
    front = [name]
    while front:
        for needed in before[front.pop()] - seen:
            seen.add(needed)
            front.append(needed)
    return other in seen


def _behind(graph: Graph, name: str) -> set[str]:
    """All ops that this one needs, near and far."""
    found: set[str] = set()
    front = [name]
    while front:
        made = {graph.maker[value].name for value in graph.node[front.pop()].ins if value in graph.maker}
        front += made - found
        found |= made
    return found


def _goes_home(node: Node) -> bool:
    """Whether an op is part of bringing rows home."""
    return isinstance(node.attrs, TransferAttrs) and node.attrs.direction is Direction.COMBINE


def _is_routed(graph: Graph, node: Node) -> bool:
    return graph.types[node.outs[0]].shape[0].symbol.startswith("rows(")


def _feeds_dispatch(schedule: Schedule) -> set[str]:
    """Names of the ops that a dispatch waits for, or the host, or what tells where its rows belong."""
    graph = schedule.graph
    found = {n.name for n in graph.nodes if is_dispatch(n) or n.kind == "locate" or n.info.role is Role.HOST}
    for node in reversed(graph.nodes):
        if node.name in found:
            found |= {graph.maker[value].name for value in node.ins if value in graph.maker}
    return found


def _known_ahead(schedule: Schedule) -> set[str]:
    """Names of the ops that find out how many rows a dispatch will bring, where another dispatch must come before its
    rows, and need not before its counts: those of a later layer, of a routing that is an input."""
    graph = schedule.graph
    found: set[str] = set()
    later: set[str] = set()
    """Ops behind a dispatch."""
    for node in graph.nodes:
        makers = [graph.maker[value] for value in node.ins if value in graph.maker]
        if any(is_dispatch(maker) or maker.name in later for maker in makers):
            later.add(node.name)
        sizes = graph.maker.get(node.ins[-1]) if is_dispatch(node) and node.info.collective else None
        if sizes is None or sizes.info.role is not Role.HOST:
            continue
        if node.name in later and sizes.name not in later:
            found |= {sizes.name, *_behind(graph, sizes.name)}
    return found


def _feeds_sums(schedule: Schedule) -> set[str]:
    """Names of the ops that make what a sum of chunks starts from."""
    graph = schedule.graph
    sums = {
        step.node: SUMS[graph.node[step.node].kind] for step in schedule.steps if step.cuts and _starts(graph, step)
    }
    found = {
        graph.maker[v].name for name, known in sums.items() for v in graph.node[name].ins[known:] if v in graph.maker
    }
    for node in reversed(graph.nodes):
        if node.name in found:
            found |= {graph.maker[value].name for value in node.ins if value in graph.maker}
    return found


def _starts(graph: Graph, step: Step) -> bool:
    """Whether a step is a sum that starts from something."""
    node = graph.node[step.node]
    return len(node.ins) > SUMS.get(node.kind, len(node.ins))


def _dependencies(schedule: Schedule) -> tuple[list[list[int]], list[int]]:
    """Edges between steps (by position): makers before readers of overlapping regions, and what `order` asks for."""
    writers: dict[str, Regions[int]] = {}
    of_node: dict[str, list[int]] = {}
    for i, step in enumerate(schedule.steps):
        of_node.setdefault(step.node, []).append(i)
        for ref in step.writes:
            writers.setdefault(ref.value, Regions()).add(ref.cuts, i)
    after: list[list[int]] = [[] for _ in schedule.steps]
    blocked = [0] * len(schedule.steps)
    edges = set()
    for i, step in enumerate(schedule.steps):
        for ref in step.reads:
            if ref.value in writers:
                edges |= {(w, i) for w in writers[ref.value].meeting(ref.cuts)}
    readers: dict[str, Regions[int]] = {}
    for i, step in enumerate(schedule.steps):
        for ref in step.reads:
            readers.setdefault(ref.value, Regions()).add(ref.cuts, i)
    for i, step in enumerate(schedule.steps):
        for ref in step.writes:
            if (before := slot_before(schedule.graph, ref)) is not None:
                # The slot is free when the expert that it held is done.
                edges |= {(r, i) for r in readers[before.value].meeting(before.cuts)}
    for first, then in _copies_in_turn(schedule.graph):
        edges |= {(of_node[first][-1], b) for b in of_node[then]}
    for first, then in schedule.order:
        edges |= {(a, b) for a in of_node[first] for b in of_node[then]}
    for a, b in sorted(edges):
        after[a].append(b)
        blocked[b] += 1
    return after, blocked


def _copies_in_turn(graph: Graph) -> list[tuple[str, str]]:
    """Pairs of ops that bring weights from the host, the second for a dispatch behind that of the first: there is one
    link, and what is wanted first comes first."""
    copies: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.info.from_host:
            copies.setdefault(graph.types[node.outs[0]].shape[0].symbol, []).append(node)
    groups = list(copies.values())
    found = []
    for before, after in pairwise(groups):
        (reader,) = graph.users[after[0].outs[0]]
        behind = _behind(graph, reader.name)
        if any(user.name in behind for node in before for user in graph.users[node.outs[0]]):
            found += [(a.name, b.name) for a in before for b in after]
    return found
