"""Sizes that are known now, and sizes that only a run knows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from math import prod

from epsc.ir.errors import Diagnostic, EpsError


class Axis(StrEnum):
    """What an op can be cut along.

    A cut divides an *index space* that a value has, whatever its memory layout is:
    """

    EXPERT_GROUP = "expert_group"
    """The local experts of each rank (EPS-MoE): each expert's weights are read once."""
    TOKENS = "tokens"
    """The tokens of each rank (Tutel's capacity, FSMoE's r): every chunk meets all local experts."""
    BATCH = "batch"
    """Whole sequences, routing included: chunks are independent from end to end (two-batch overlap)."""
    PEER = "peer"
    """The rank that rows come from or go to, counted from this rank: 0 is local (Comet, Parm S2)."""
    COLUMNS = "columns"
    """The features of a row (Comet's second half: sending starts after the first columns of all experts)."""
    SLOT = "slot"
    """A ring of weight buffers, expert e in slot e mod count (CPM-2/InfMoE)."""


@dataclass(frozen=True, order=True)
class Cut:
    """Part `index` of `count` equal parts of an axis: the interval [index/count, (index+1)/count) of it.

    With n elements on the axis, part i holds the elements from floor(i*n/count) up to floor((i+1)*n/count), so
    parts may be uneven or, for tokens, empty. That map is monotone, so disjoint intervals are disjoint elements for
    every n: a proof over intervals holds for all sizes.
    """

    axis: Axis
    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"cut {self.index}/{self.count} is out of range")

    @property
    def interval(self) -> tuple[Fraction, Fraction]:
        return Fraction(self.index, self.count), Fraction(self.index + 1, self.count)

    def overlaps(self, other: Cut) -> bool:
        """Whether the two share elements (cuts of different axes always may)."""
        if self.axis is not other.axis:
            return True
        # (i/n, (i+1)/n) meets (j/m, (j+1)/m), in integers because this is the inner loop of the hazard check.
        return self.index * other.count < (other.index + 1) * self.count and (
            other.index * self.count < (self.index + 1) * other.count
        )

    def covers(self, other: Cut) -> bool:
        """Whether every element of `other` is in this one."""
        return self.axis is other.axis and (
            self.index * other.count <= other.index * self.count
            and (other.index + 1) * self.count <= (self.index + 1) * other.count
        )

    def __str__(self) -> str:
        return f"{self.axis}:{self.index}/{self.count}"

    @staticmethod
    def parse(text: str) -> Cut:
        match = re.fullmatch(r"(\w+):(\d+)/(\d+)", text.strip())
        if not match or match[1] not in set(Axis):
            raise EpsError(Diagnostic("bad-cut", f"`{text}` is not a cut such as `expert_group:0/5`"))
        try:
            return Cut(Axis(match[1]), int(match[2]), int(match[3]))
        except ValueError as error:
            raise EpsError(Diagnostic("bad-cut", str(error))) from None


Cuts = tuple[Cut, ...]


def overlap(a: Cuts, b: Cuts) -> bool:
    """Whether two regions of one value share elements: unless they are apart along some axis."""
    return all(x.overlaps(y) for x in a for y in b)


def cuts_text(cuts: Cuts) -> str:
    """`[expert_group:0/5,columns:1/2]`, or nothing when uncut."""
    return f"[{','.join(map(str, cuts))}]" if cuts else ""


def cuts_parse(text: str) -> Cuts:
    return tuple(Cut.parse(part) for part in text.split(",")) if text else ()


@dataclass(frozen=True, order=True)
class Dim:
    """`scale * symbol`, or the number `scale` when there is no symbol.

    Symbols are counts that a run knows: `tokens` (rows of the layer's input on this rank), `tokens(a)` (its share of
    them, if the ranks of mesh axis `a` have the same), `rows(d)` (rows that arrive at this rank through dispatch `d`),
    `sends(d)` (rows that leave it), `experts(d)` (those of this rank that `d` sends to), each restricted by cuts;
    `slots` (a place for every token that a rank may have, for each rank) and `ranks`.
    """

    scale: int
    symbol: str = ""
    cuts: Cuts = ()

    @property
    def known(self) -> bool:
        return not self.symbol

    def times(self, factor: int) -> Dim:
        return Dim(self.scale * factor, self.symbol, self.cuts)

    def cut(self, cuts: Cuts) -> Dim:
        return Dim(self.scale, self.symbol, cuts) if self.symbol else self

    def __str__(self) -> str:
        if not self.symbol:
            return str(self.scale)
        name = f"{self.symbol}{cuts_text(self.cuts)}"
        return name if self.scale == 1 else f"{self.scale}*{name}"

    @staticmethod
    def parse(text: str) -> Dim:
        match = re.fullmatch(r"(?:(\d+)(?:\*|$))?(?:([a-z_]\w*(?:\([\w.]+\))?)(?:\[([^\]]*)\])?)?", text.strip())
        if not match or not (match[1] or match[2]):
            raise EpsError(Diagnostic("bad-dim", f"`{text}` is not a size such as `5120` or `6*tokens`"))
        return Dim(int(match[1] or 1), match[2] or "", cuts_parse(match[3] or ""))


TOKENS = Dim(1, "tokens")


def tokens_of(axis: str) -> Dim:
    """This rank's share of tokens that the ranks of a mesh axis have in common."""
    return Dim(1, f"tokens({axis})")


def is_tokens(symbol: str) -> bool:
    """Whether a count is one of tokens: all that this rank has, or its share of them."""
    return symbol.partition("(")[0] == "tokens"


SLOTS = Dim(1, "slots")
RANKS = Dim(1, "ranks")


def rows(dispatch: str) -> Dim:
    """Rows that arrive at this rank through `dispatch`."""
    return Dim(1, f"rows({dispatch})")


def sends(dispatch: str) -> Dim:
    """Rows that leave this rank through `dispatch`, where it does not take every copy."""
    return Dim(1, f"sends({dispatch})")


def own_experts(dispatch: str) -> Dim:
    """Experts of this rank that `dispatch` sends to."""
    return Dim(1, f"experts({dispatch})")


class DType(StrEnum):
    """Element types, by their `.eps` names; `torch` names are in codegen."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    INT64 = "int64"
    INT32 = "int32"

    @property
    def bytes(self) -> int:
        return {"bf16": 2, "fp16": 2, "fp32": 4, "int64": 8, "int32": 4}[self.value]


@dataclass(frozen=True)
class Tensor:
    """The type of a value: an element type and a shape, outermost dimension first."""

    dtype: DType
    shape: tuple[Dim, ...]

    @property
    def numel(self) -> Dim:
        """Number of elements; at most one dimension may be a symbol."""
        scale = prod(dim.scale for dim in self.shape)
        symbols = [dim for dim in self.shape if dim.symbol]
        if len(symbols) > 1:
            raise ValueError(f"{self} has more than one unknown size")
        return Dim(scale, symbols[0].symbol, symbols[0].cuts) if symbols else Dim(scale)

    def cut(self, cuts: Cuts) -> Tensor:
        """The type of a region: row counts are restricted by the row cuts, the last dimension by a columns cut."""
        by_rows = tuple(c for c in cuts if c.axis not in (Axis.COLUMNS, Axis.SLOT))
        shape = [dim.cut(by_rows) for dim in self.shape]
        for column in (c for c in cuts if c.axis is Axis.COLUMNS):
            width = shape[-1].scale
            shape[-1] = Dim((column.index + 1) * width // column.count - column.index * width // column.count)
        return Tensor(self.dtype, tuple(shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    @staticmethod
    def parse(text: str) -> Tensor:
        match = re.fullmatch(r"(\w+)\[(.*)\]", text.strip())
        if not match or match[1] not in set(DType):
            raise EpsError(Diagnostic("bad-type", f"`{text}` is not a type such as `bf16[tokens, 5120]`"))
        # Commas inside brackets belong to cuts, not to the shape.
        parts = re.split(r",\s+", match[2]) if match[2] else []
        return Tensor(DType(match[1]), tuple(map(Dim.parse, parts)))
