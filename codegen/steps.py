"""Steps: each step of a schedule as a block of `forward`: its comment, what the host prepares, and what is issued."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from epsc.codegen.lifetimes import last_uses
from epsc.codegen.lines import WIDTH, Arg, Listing, call, comment
from epsc.codegen.memory import Memory
from epsc.codegen.names import string, visible
from epsc.codegen.ops import Ops
from epsc.codegen.regions import Regions, columns_of, row_cut
from epsc.codegen.writer import At, Op
from epsc.ir.attrs import Direction, ExpertGemmActAttrs, RouteAttrs, SlotAttrs, TransferAttrs
from epsc.ir.dims import Axis, Cut
from epsc.ir.graph import Node, places_of
from epsc.ir.impls import impls_of
from epsc.ir.kinds import Role
from epsc.ir.places import Place, named, short_names
from epsc.ir.schedule import HOST_LANE, Hazard, Schedule, Step
from epsc.proof.happens import Happens

_PART = re.compile(r"\bpart\b")
_TEXTS = ("key", "comm", "module")
"""Fields of an op that hold string literals."""
_PYTHON = WIDTH - len("        # From ")
"""Characters of a line of the user's Python that a comment has room for."""


@dataclass(frozen=True)
class Block:
    """One step in `forward`."""

    template: str
    """The macro that writes what is issued."""
    comment: tuple[str, ...]
    prepare: tuple[str, ...]
    """Lines for the host, before: sizes and views."""
    opening: tuple[str, ...]
    """The `with` line."""
    op: Op
    """What the macro fills in."""
    after: tuple[str, ...] = ()
    """What is issued last, and what is given back then."""


@dataclass
class Steps:
    """Writes the steps of one schedule."""

    schedule: Schedule
    regions: Regions
    memory: Memory
    ops: Ops
    awaited: frozenset[str] = field(init=False)
    signalled: frozenset[str] = field(init=False)
    """Steps that other ranks wait for."""
    last_uses: dict[int, list[str]] = field(init=False)
    _met: dict[Place, int] = field(init=False, default_factory=dict)
    """The step that each line of Python is first met in."""

    def __post_init__(self) -> None:
        steps, lane_of = self.schedule.steps, {step.key: step.lane for step in self.schedule.steps}
        self.signalled = frozenset(wait.step for step in steps for wait in step.waits if wait.everywhere)
        self.awaited = frozenset(w.step for step in steps for w in step.waits if lane_of[w.step] != step.lane)
        self.last_uses = last_uses(self.schedule, self.regions)

    def block(self, number: int, step: Step) -> Block:
        node = self.schedule.node(step)
        impl = impls_of(node.kind)[step.impl.otherwise]
        cut = row_cut(step.cuts, f"`{step.key}`")
        op = self.ops.of(At(step, node, cut))
        prepare: list[str] = []
        views = self.memory.views(number, step)
        written = [str(text) for name, text in op.items() if name not in _TEXTS] + [expr for _, expr in views]
        if any(_PART.search(text) for text in written):
            prepare.append(f"        part = {self.regions.part(self.regions.dispatch(node), cut)}")
        for name, expr in views:
            prepare.append(f"        {name} = {expr}")
        return Block(
            impl.template,
            tuple(self._comment(number, step, node, cut)),
            tuple(prepare),
            tuple(self._opening(step, node)),
            op,
            tuple(self._after(number, step, op)),
        )

    def _after(self, number: int, step: Step, op: Op) -> list[str]:
        lines = [f"            keep(made, {op['keep']})"] if "keep" in op else []
        gone = self.last_uses.get(number, [])
        return [*lines, *(f"        del {name}  # {step.lane} may use its memory again" for name in gone)]

    def _comment(self, number: int, step: Step, node: Node, cut: Cut | None) -> list[str]:
        lines = comment(f"{step.key}, on {step.lane}: {self._what(step, node, cut)}.", 8)
        lines += self._python(number, node)
        for wait in step.waits:
            other = self.schedule.step[wait.step]
            why = {
                Hazard.RAW: f"it makes {wait.value}, which this reads",
                Hazard.WAR: f"it reads {wait.value}, which this overwrites",
                Hazard.WAW: f"it writes {wait.value}, which this overwrites",
            }[wait.hazard]
            where = "of every rank" if wait.everywhere else f"on {other.lane}"
            lines += comment(f"Waits for {wait.step} {where}: {why}.", 8)
        if node.info.role is Role.TRANSFER:
            for lane, others in self._lanes.items():
                if lane not in (step.lane, HOST_LANE) and (beside := self._happens.stretch(step, others)):
                    last = f" to {beside[-1].key}" if len(beside) > 1 else ""
                    lines += comment(f"Free to run beside it on {lane}: {beside[0].key}{last}.", 8)
        return lines

    def _python(self, number: int, node: Node) -> list[str]:
        """The lines of Python that a step was read from: with their text where they are first met."""
        if not node.places:
            return []
        short = self._short
        first = [place for place in node.places if self._met.setdefault(place, number) == number]
        rest = [short[place] for place in node.places if place not in first]
        told = [visible(short[place].comment) for place in first] + ([visible(f"{named(rest)}.")] if rest else [])
        return [f"        # From {line if len(line) <= _PYTHON else line[: _PYTHON - 4] + ' ...'}" for line in told]

    @cached_property
    def _short(self) -> dict[Place, Place]:
        return short_names(places_of(*self.schedule.graph.nodes))

    @cached_property
    def _happens(self) -> Happens:
        return Happens.of(self.schedule)

    @cached_property
    def _lanes(self) -> dict[str, list[Step]]:
        return {lane.name: [s for s in self.schedule.steps if s.lane == lane.name] for lane in self.schedule.lanes}

    def _what(self, step: Step, node: Node, cut: Cut | None) -> str:
        if node.kind == "expert_gemm":
            return f"{self._experts(node, cut)} on their rows{self._columns(step, node)}, by {step.impl}"
        if node.kind == "expert_gemm_put":
            return f"{self._experts(node, cut)} on their rows, each of which goes home as it is made"
        if isinstance(node.attrs, ExpertGemmActAttrs):
            return f"{self._experts(node, cut)} on their rows, and {node.attrs.fn} of that, by {step.impl}"
        if isinstance(node.attrs, SlotAttrs):
            which = self._experts(node, cut) if node.ins else f"expert {cut.index if cut else 0}"
            slot = cut.index % node.attrs.slots if cut else 0
            return f"the weight of {which} comes from the host into slot {slot}"
        if node.kind == "all2all":
            assert isinstance(node.attrs, TransferAttrs)
            there = node.attrs.direction is Direction.DISPATCH
            if cut is not None and cut.axis is Axis.PEER:
                offset = cut.index if there else -cut.index
                where = f"the rank {abs(offset)} {'after' if there else 'before'} this one" if offset else "this rank"
                return f"rows {'go to' if there else 'go home to'} {where}"
            which = f"{columns.removeprefix(', ')} of rows" if (columns := self._columns(step, node)) else "rows"
            return f"{which} {'go to' if there else 'come home from'} {self._experts(node, cut)} of every rank"
        if isinstance(node.attrs, RouteAttrs):
            return f"each token chooses {node.attrs.top_k} of {node.attrs.experts} experts"
        what = _WHAT[node.kind] + self._columns(step, node)
        by = f", by {step.impl}" if "triton" in impls_of(node.kind) else ""
        if cut is not None and cut.axis is Axis.EXPERT_GROUP:
            return f"{what}, for {self._experts(node, cut)}{by}"
        pieces = f", for tokens {cut.index}/{cut.count} to {cut.index + 1}/{cut.count}" if cut else ""
        if cut is not None and cut.axis is Axis.PEER:
            pieces = f", for rows of {_source(cut)}"
        return f"{what}{pieces}{by}"

    def _columns(self, step: Step, node: Node) -> str:
        """Which columns a step makes, if not all."""
        width = self.schedule.graph.types[node.outs[0]].shape[-1].scale
        low, high = columns_of(step.cuts, width)
        return f", columns {low} to {high - 1}" if high - low < width else ""

    def _experts(self, node: Node, cut: Cut | None) -> str:
        if cut is not None and cut.axis is Axis.PEER:
            return f"the local experts (rows of {_source(cut)})"
        if cut is None or cut.axis is not Axis.EXPERT_GROUP:
            chunk = f"the local experts (tokens {cut.index}/{cut.count} to {cut.index + 1}/{cut.count})" if cut else ""
            return chunk or "the local experts"
        low, high = self.regions.local(self.regions.dispatch(node), cut)
        if high - low <= 1:
            return f"local expert {low}" if high > low else "no local expert"
        return f"local experts {low} to {high - 1}"

    def _opening(self, step: Step, node: Node) -> list[str]:
        args: list[Arg] = [string(step.key)]
        after = [w.step for w in step.waits if self.schedule.step[w.step].lane != step.lane]
        if after:
            args.append(Listing("after=", tuple(map(string, after))))
        if signals := [wait.step for wait in step.waits if wait.everywhere]:
            args.append(Listing("signals=", tuple(map(string, signals))))
        if step.key in self.awaited:
            args.append("mark=True")
        if step.key in self.signalled:
            args.append("signal=True")
        if node.info.collective:
            args.append("transfer=True")
        if step.sms and node.info.role is Role.COMPUTE and step.sms < self.schedule.chip_sms:
            args.append(f"sms_left={self.schedule.chip_sms - step.sms}")
        return call(f"with self.{self.ops.scope.lanes[step.lane]}.step", args, ":", 8)


def _source(cut: Cut) -> str:
    """The rank that the rows of a cut by peer come from."""
    return f"the rank {cut.index} before this one" if cut.index else "this rank"


_WHAT = {
    "layout": "where each copy of a token goes",
    "exchange": "every rank learns how many rows it gets",
    "pass_counts": "every rank learns how many rows pass through it on their way to other nodes",
    "sizes": "the host learns the counts; it waits for the device here, and nowhere else",
    "permute": "a copy of each token for each of its experts, in sending order",
    "arrange": "where each row that arrives belongs",
    "regroup": "rows by expert",
    "ungroup": "rows by source rank again",
    "fetch": "counts of rows by expert, for the host",
    "own_rows": "which copies of tokens have their expert on this rank",
    "pick_rows": "rows by expert, of the experts here",
    "place_rows": "copies in token order, zeros where their expert is on another rank",
    "gather_counts": "how many rows come to each of the ranks that share experts with this one",
    "all_gather_rows": "rows that came to the ranks that share experts, on each of them",
    "reduce_scatter_rows": "the sum of what the ranks that share experts made, of the rows that came here",
    "layout_shares": "where copies of all tokens lie that ranks with the same tokens bring home, each its share",
    "all_gather_copies": "the rows that came home to the ranks with the same tokens, on each of them",
    "split_tokens": "this rank's share of the tokens",
    "all_gather": "the shares of all ranks, on each of them",
    "reduce_scatter": "this rank's share of the sum of what all ranks made",
    "all_reduce": "the sum of what all ranks made",
    "count": "the rank of each copy of a token among those of its expert",
    "tell": "every rank learns what the tokens of this one chose",
    "put_rows": "each token goes once to every rank that has an expert for it",
    "copy_rows": "all tokens go to every other rank, by copy engines",
    "locate": "where each copy of any rank's token belongs here",
    "aim": "where each copy of any rank's token belongs here, and where those of this rank go",
    "expand": "rows by expert",
    "put_copies": "each copy of a token goes to the row where the product of its expert reads it",
    "put_sums": "what the experts here made of a token, weighted and summed, goes home",
    "put_back": "what the experts here made goes home, a row for each copy",
    "sum_ranks": "the sums of all ranks",
    "sum_copies": "the copies of each token, weighted and summed",
    "gemm": "matrix product",
    "activation": "elementwise",
    "identity": "each token times the weights of its copies for experts that do nothing",
    "add": "sum",
    "mul": "product",
    "unpermute": "copies in token order",
    "weighted_sum": "the copies of each token, weighted and summed",
    "unpermute_sum": "the copies of each token, weighted and summed",
    "call": "a module that was given",
}
