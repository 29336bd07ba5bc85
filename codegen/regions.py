"""Regions: which rows of which tensor a step reads or writes, as Python expressions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from epsc.codegen.names import Names
from epsc.ir.attrs import RowsAttrs, SlotAttrs
from epsc.ir.dims import Axis, Cut, Cuts, Dim, cuts_text, is_tokens
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.graph import Graph, Node
from epsc.ir.schedule import Buffer, Layout, Ref, Schedule, Step

_OF_DISPATCH = frozenset(
    {
        *("exchange", "sizes", "arrange", "permute", "all2all", "ungroup", "regroup"),
        *("pass_counts", "fetch", "own_rows", "pick_rows", "gather_counts", "all_gather_rows", "reduce_scatter_rows"),
        "all_gather_copies",
    }
)
"""Kinds that belong to the dispatch whose layout they read."""


def refuse(what: str) -> EpsError:
    """For schedules that cannot be written out."""
    return EpsError(Diagnostic("cannot-emit", what))


def row_cut(cuts: Cuts, where: str) -> Cut | None:
    """The one cut of rows among `cuts`; none if it is whole."""
    for cut in cuts:
        if cut.axis not in (Axis.EXPERT_GROUP, Axis.TOKENS, Axis.PEER, Axis.COLUMNS):
            raise refuse(f"{where} is cut by {cut.axis}, which no program can be written for yet")
    if len(cuts) > 1:
        raise refuse(f"{where} is cut in two ways at once, which no program can be written for yet")
    return cuts[0] if cuts and cuts[0].axis is not Axis.COLUMNS else None


def columns_of(cuts: Cuts, width: int) -> tuple[int, int]:
    """The columns that cuts leave of `width`."""
    for cut in cuts:
        if cut.axis is Axis.COLUMNS:
            return cut.index * width // cut.count, (cut.index + 1) * width // cut.count
    return 0, width


def place_of(graph: Graph, dispatch: str) -> Node:
    """The op that says where the rows of a one-sided dispatch lie."""
    return next(node for node in graph.nodes if node.name in (f"{dispatch}.locate", f"{dispatch}.aim"))


def place_text(schedule: Schedule, axis: str) -> str:
    """Which rank of a mesh axis this is, as an expression."""
    mesh = schedule.mesh_of(axis)
    stride = mesh.stride(axis)
    return f"self.rank{f' // {stride}' if stride > 1 else ''} % {mesh.size(axis)}"


@dataclass(frozen=True)
class Target:
    """Where a step writes: `expr`; `name` is set when that is a variable of its own, which the step may assign."""

    expr: str
    name: str = ""


class Regions:
    """The tensors of one schedule by the names that `forward` gives them."""

    def __init__(self, schedule: Schedule, names: Names, slots: Mapping[str, str] | None = None) -> None:
        """`slots`: dispatches by one-sided transfers -> the attribute that runs them."""
        self.schedule, self.graph, self.names = schedule, schedule.graph, names
        self.slots = dict(slots or {})
        self.ranges: dict[tuple[str, int, int], str] = {}
        """Lists of slices of tokens that `forward` needs: (count of tokens, chunks, copies of each token) -> name."""
        self.shares: dict[str, tuple[str, str]] = {}
        """Mesh axes over which tokens are split -> lists of slices, the ranks' shares, and the size of this one's."""

        self.cuts: dict[str, set[int]] = {}
        """Dispatch -> the numbers of pieces that some step wants its rows in."""
        self.helpers: set[str] = set()
        """Functions of the program that expressions call."""

    # --- dispatches ---

    @cached_property
    def _dispatch_of_value(self) -> dict[str, str]:
        """The dispatch that each control value, and each value in sending order, belongs to."""
        found: dict[str, str] = {}
        for node in self.graph.nodes:
            if node.kind in ("layout", "layout_shares", "locate", "aim"):
                mine = node.name.removesuffix(f".{node.kind}")
            else:
                mine = next((found[value] for value in reversed(node.ins) if value in found), "")
                if node.kind not in _OF_DISPATCH:
                    continue
            if mine:
                found.update(dict.fromkeys(node.outs, mine))
        return found

    def dispatch(self, node: Node) -> str:
        """The dispatch whose rows `node` works on."""
        for value in (*node.outs, *reversed(node.ins)):
            if value in self._dispatch_of_value:
                return self._dispatch_of_value[value]
        symbol = self.graph.types[node.ins[0]].shape[0].symbol
        return _dispatch_in(symbol)

    def layout(self, dispatch: str) -> Layout:
        return self.schedule.layout.get(dispatch, Layout(dispatch))

    def variable(self, key: str) -> str:
        """The local variable for a value or another thing of `forward`."""
        return self.names.of(key)

    def sizes(self, dispatch: str) -> str:
        return self.names.of(f"{dispatch}.sizes")

    def part(self, dispatch: str, cut: Cut | None) -> str:
        count, index = (cut.count, cut.index) if cut else (1, 0)
        if dispatch in self.slots:
            group = "" if cut is None else f", {self.group(dispatch, cut)}"
            return f"self.{self.slots[dispatch]}.part({self.ends(dispatch)}, tokens{group})"
        self.cuts.setdefault(dispatch, set()).add(count)
        return f"{self.sizes(dispatch)}.parts[{count}][{index}]"

    def ends(self, dispatch: str) -> str:
        """Where the rows of each expert here end, of a one-sided dispatch."""
        return self.variable(f"{place_of(self.graph, dispatch).name}.ends")

    # --- experts ---

    def group(self, dispatch: str, cut: Cut) -> str:
        """The local experts of a cut, as a range."""
        low, high = self.local(dispatch, cut)
        return f"range({low}, {high})" if low else f"range({high})"

    def local(self, dispatch: str, cut: Cut | None) -> tuple[int, int]:
        """The local experts of a cut."""
        local = self.experts(dispatch) // self.schedule.ep
        if cut is None or cut.axis is not Axis.EXPERT_GROUP:
            return 0, local
        return cut.index * local // cut.count, (cut.index + 1) * local // cut.count

    def experts(self, dispatch: str) -> int:
        """All experts that a dispatch sends rows to."""
        known = place_of(self.graph, dispatch) if dispatch in self.slots else self.graph.node[f"{dispatch}.layout"]
        attrs = known.attrs
        assert isinstance(attrs, RowsAttrs)
        return attrs.experts

    def slots_of(self, value: str, cuts: Cuts) -> int:
        """How many experts' weights a piece of a `weight_copy` holds."""
        attrs = self.graph.maker[value].attrs
        assert isinstance(attrs, SlotAttrs)
        local = attrs.experts // self.schedule.ep
        return (cuts[0].index + 1) * local // cuts[0].count - cuts[0].index * local // cuts[0].count if cuts else local

    def selective(self, dispatch: str) -> bool:
        """Whether it sends some copies of a token only."""
        node = self.graph.node.get(f"{dispatch}.layout")
        return node is not None and isinstance(node.attrs, RowsAttrs) and node.attrs.selective

    def stays(self, dispatch: str) -> bool:
        """Whether its rows stay on their rank, which has all tokens."""
        return self.graph.node[dispatch].kind == "pick_rows"

    def shares_of(self, combine: str) -> Node | None:
        """Of a combine of rows that ranks with the same tokens gather: the op that says where they lie."""
        return self.graph.node.get(f"{combine}.layout_shares")

    # --- rows ---

    def tokens(self, cut: Cut, copies: int, symbol: str = "tokens") -> str:
        """The slice of tokens, or of `copies` rows for each, in a cut of tokens."""
        of = self.token_count(symbol)
        key = (of, cut.count, copies)
        wish = f"{of}_by_{cut.count}" if copies == 1 else f"rows{copies}_by_{cut.count}"
        self.ranges.setdefault(key, self.names.of(f"{of}.{wish}", wish))
        return f"{self.ranges[key]}[{cut.index}]"

    def token_count(self, symbol: str) -> str:
        """How many tokens this rank has, or its share of them has."""
        return "tokens" if symbol == "tokens" else self.share(symbol[len("tokens(") : -1])[1]

    def share(self, axis: str) -> tuple[str, str]:
        """The list of slices of the shares of all ranks of an axis, and the count of this rank's."""
        if axis not in self.shares:
            self.helpers.add("length")
            self.shares[axis] = (
                self.names.of(f"shares {axis}", f"shares_{axis}"),
                self.names.of(f"tokens {axis}", f"tokens_{axis}"),
            )
        return self.shares[axis]

    def place(self, axis: str) -> str:
        """Which rank of an axis this is."""
        return place_text(self.schedule, axis)

    def rows(self, value: str, cut: Cut, part: str) -> str:
        """The slice of rows of `value` in a cut; `part` is the Part of that cut, where one is needed."""
        dim = self.graph.types[value].shape[0]
        if dim.symbol.startswith("rows("):
            return f"{part}.arrive"
        if dim.symbol.startswith("gets("):
            return f"{part}.own"
        if cut.axis is Axis.TOKENS:
            return self.tokens(cut, dim.scale, dim.symbol)
        return f"{part}.leave"

    def count(self, dim: Dim, value: str, part: str) -> str:
        """How many rows a buffer of `value` with first dimension `dim` has."""
        if dim.known:
            return str(dim.scale)
        cut = row_cut(dim.cuts, f"`{value}`")
        if is_tokens(dim.symbol):
            if cut is None:
                count = self.token_count(dim.symbol)
                return count if dim.scale == 1 else f"{dim.scale} * {count}"
            if cut.axis is Axis.TOKENS:
                return self.length(self.tokens(cut, dim.scale, dim.symbol))
            return self.length(f"{part}.leave")
        if dim.symbol.startswith("sends("):
            return self.length(f"{part}.leave") if cut else self.leaving(_dispatch_in(dim.symbol))
        if dim.symbol.startswith("gets("):
            return self.length(f"{part}.own") if cut else f"{self.sizes(_dispatch_in(dim.symbol))}.own"
        return f"{part}.rows" if cut else self.arrived(_dispatch_in(dim.symbol))

    def arrived(self, dispatch: str) -> str:
        """How many rows arrive, or at most can where the host does not know."""
        return f"self.{self.slots[dispatch]}.rows" if dispatch in self.slots else f"{self.sizes(dispatch)}.rows"

    def leaving(self, dispatch: str) -> str:
        """How many rows leave, where not every copy does."""
        return f"{self.sizes(dispatch)}.parts[{self.layout(dispatch).count}][-1].leave.stop"

    def largest(self, dispatch: str, pieces: int) -> str:
        """The rows of the largest piece."""
        self.cuts.setdefault(dispatch, set()).add(pieces)
        return f"{self.sizes(dispatch)}.largest({pieces})"

    def length(self, rows: str) -> str:
        self.helpers.add("length")
        return f"length({rows})"

    # --- tensors ---

    @cached_property
    def _buffers(self) -> dict[str, list[Buffer]]:
        found: dict[str, list[Buffer]] = {}
        for buffer in self.schedule.buffers:
            found.setdefault(buffer.value, []).append(buffer)
        return found

    def buffer(self, ref: Ref) -> Buffer | None:
        """The buffer that holds a region: its own, or that of the whole value."""
        mine = self._buffers.get(ref.value, [])
        exact = next((b for b in mine if b.cuts == ref.cuts), None)
        whole = next((b for b in mine if not b.cuts), None)
        if mine and not (exact or whole):
            raise refuse(f"no buffer holds `{ref}` in one piece")
        return exact or whole

    def read(self, step: Step, ref: Ref) -> str:
        """The tensor that holds the region `ref`."""
        return self._region(step, ref).expr

    def write(self, step: Step, ref: Ref) -> Target:
        return self._region(step, ref)

    def indexed(self, ref: Ref) -> str:
        """All rows of the value, of which an index picks some."""
        columns = tuple(cut for cut in ref.cuts if cut.axis is Axis.COLUMNS)
        buffer = self.buffer(Ref(ref.value, columns))
        if buffer is not None and row_cut(buffer.cuts, f"`{buffer.key}`"):
            raise refuse(f"`{ref.value}` is read or written by index, and so must lie in one buffer")
        return self.chunk(ref.value, columns) if buffer and buffer.cuts else self.variable(ref.value)

    def whole(self, ref: Ref) -> bool:
        """Whether the region is all of its buffer."""
        buffer = self.buffer(ref)
        return buffer is None or buffer.cuts == ref.cuts

    def _region(self, step: Step, ref: Ref) -> Target:
        if self.whole(ref) and (ref.value not in self.graph.inputs or not ref.cuts):
            name = self.chunk(ref.value, ref.cuts if self.buffer(ref) else ())
            return Target(name, name)
        cut = row_cut(ref.cuts, f"`{ref}`")
        if cut is None:
            low, high = columns_of(ref.cuts, self.graph.types[ref.value].shape[-1].scale)
            return Target(f"{self.variable(ref.value)}[:, {low}:{high}]")
        return Target(f"{self.variable(ref.value)}[{self.rows(ref.value, cut, self.part_here(step, ref, cut))}]")

    def chunk(self, value: str, cuts: Cuts) -> str:
        """The variable of a value, or of one chunk of it."""
        if not cuts:
            return self.variable(value)
        (cut,) = cuts
        return self.names.of(f"{value}{cuts_text(cuts)}", f"{value}_{cut.index}")

    def part_here(self, step: Step, ref: Ref, cut: Cut) -> str:
        """The Part of `cut` as the block of `step` calls it."""
        own = row_cut(step.cuts, f"`{step.key}`")
        if own == cut:
            return "part"
        if cut.axis is Axis.TOKENS and is_tokens(self.graph.types[ref.value].shape[0].symbol):
            return ""
        return self.part(self.dispatch(self.graph.maker[ref.value]), cut)


def _dispatch_in(symbol: str) -> str:
    """The `d` of `rows(d)` or `sends(d)`."""
    return symbol.partition("(")[2].removesuffix(")")
