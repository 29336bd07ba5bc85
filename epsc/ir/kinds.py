"""The table of op kinds: what a Graph can say, and along which axes each kind can be cut.

Two levels. *Said* kinds are what a `.eps` file or a traced module speaks of (`dispatch`, `combine`); *lowered* kinds
are what the `canonicalise` pass rewrites them to, and the only ones that a Schedule may hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from epsc.ir.attrs import (
    ActAttrs,
    CallAttrs,
    CollectiveAttrs,
    ExpertGemmActAttrs,
    ExpertGemmAttrs,
    ExpertGemmPutAttrs,
    GemmAttrs,
    NoAttrs,
    PlaceAttrs,
    RouteAttrs,
    RowsAttrs,
    SlotAttrs,
    TransferAttrs,
)
from epsc.ir.dims import Axis


class Role(StrEnum):
    """What an op occupies while it runs, in the coarse: decides its default lane and its colour in pictures."""

    COMPUTE = "compute"
    """Bound by arithmetic: GEMMs."""
    MEMORY = "memory"
    """Bound by device memory: gathers, activations, sums."""
    TRANSFER = "transfer"
    """Moves rows between ranks."""
    CONTROL = "control"
    """Small: routing, counts, indices."""
    HOST = "host"
    """Makes the host wait for the device."""


@dataclass(frozen=True)
class Kind:
    name: str
    signature: str
    """Inputs -> outputs, with types, for people."""
    role: Role
    attrs: type
    axes: frozenset[Axis] = frozenset()
    """Axes along which an op of this kind can be cut."""
    lowered: bool = True
    outs: tuple[str, ...] = ("",)
    """Suffixes of its outputs' names; one nameless output is named after the op itself."""
    one_sided: bool = False
    """It writes into the memory of other ranks, each its own part: whoever reads there waits for all ranks."""
    moves_rows: bool = False
    from_host: bool = False
    """It brings weights from the memory of the host, over a link of its own."""

    @property
    def collective(self) -> bool:
        """Whether all ranks take part in it, in one order."""
        return self.role is Role.TRANSFER and not (self.one_sided or self.from_host)

    @property
    def makes_rows(self) -> bool:
        """Whether its result is rows of numbers, which need a buffer, and not an index or a count."""
        return self.moves_rows or self.from_host or self.role in (Role.MEMORY, Role.COMPUTE)


def _table(*kinds: Kind) -> dict[str, Kind]:
    return {kind.name: kind for kind in kinds}


_BY_EXPERT = frozenset({Axis.EXPERT_GROUP, Axis.TOKENS, Axis.BATCH})
_ROWWISE = _BY_EXPERT | {Axis.PEER}
_TOKENWISE = frozenset({Axis.TOKENS, Axis.BATCH})
_COLUMNS = frozenset({Axis.COLUMNS})
_GROUPS = frozenset({Axis.EXPERT_GROUP})
_BATCH = frozenset({Axis.BATCH})

KINDS: dict[str, Kind] = _table(
    Kind(
        "route",
        "x[tokens, hidden] -> experts int64[tokens, k], weights fp32[tokens, k]",
        Role.CONTROL,
        RouteAttrs,
        _BATCH,
        outs=(".experts", ".weights"),
    ),
    Kind(
        "dispatch",
        "x[tokens, hidden], experts -> rows[rows(d), hidden], by expert",
        Role.TRANSFER,
        RowsAttrs,
        lowered=False,
    ),
    Kind(
        "combine",
        "rows[rows(d), hidden], experts, weights -> y[tokens, hidden]",
        Role.TRANSFER,
        RowsAttrs,
        lowered=False,
    ),
    Kind(
        "select_local",
        "x[tokens, hidden], experts -> rows[rows(d), hidden] of the experts of this rank, by expert",
        Role.MEMORY,
        RowsAttrs,
        lowered=False,
    ),
    Kind(
        "scatter_rows",
        "rows[rows(d), hidden], experts, weights -> y[tokens, hidden]: what the experts of this rank add to each token",
        Role.MEMORY,
        RowsAttrs,
        lowered=False,
    ),
    Kind(
        "layout",
        "experts -> order int64[k*tokens]: the token copy in each send row; place: its inverse; counts per expert",
        Role.CONTROL,
        RowsAttrs,
        _BATCH,
        outs=(".order", ".place", ".counts"),
    ),
    Kind("exchange", "counts -> counts of the rows that come", Role.TRANSFER, TransferAttrs, _BATCH),
    Kind(
        "pass_counts",
        "counts -> counts of the rows that pass through this rank, from its node to the ranks of its place in each",
        Role.TRANSFER,
        TransferAttrs,
        _BATCH,
    ),
    Kind(
        "sizes",
        "both counts -> the same on the host: the only host synchronisation",
        Role.HOST,
        RowsAttrs,
        _BATCH,
    ),
    Kind(
        "permute",
        "x[tokens, hidden], order -> send[k*tokens, hidden]",
        Role.MEMORY,
        RowsAttrs,
        frozenset({Axis.TOKENS, Axis.BATCH}),
    ),
    Kind(
        "all2all",
        "send rows, sizes -> received rows, by source rank",
        Role.TRANSFER,
        TransferAttrs,
        _ROWWISE | _COLUMNS,
        moves_rows=True,
    ),
    Kind(
        "arrange",
        "received counts, sizes -> index int64[rows(d)] from expert order to source order; ends int32 per expert",
        Role.CONTROL,
        RowsAttrs,
        _BATCH,
        outs=(".index", ".ends"),
    ),
    Kind("regroup", "received rows, index -> rows by expert", Role.MEMORY, RowsAttrs, _BY_EXPERT),
    Kind("ungroup", "rows by expert, index -> rows by source rank", Role.MEMORY, RowsAttrs, _BY_EXPERT | _COLUMNS),
    Kind(
        "weight_copy",
        "(sizes); weight[experts, m, n] of the host -> weight[experts(d), m, n], experts taking turns in slots",
        Role.TRANSFER,
        SlotAttrs,
        frozenset({Axis.EXPERT_GROUP}),
        from_host=True,
    ),
    Kind(
        "expert_gemm",
        "rows[rows(d), n], ends; weight[experts, m, n] -> rows[rows(d), m]",
        Role.COMPUTE,
        ExpertGemmAttrs,
        _ROWWISE | _COLUMNS,
    ),
    Kind(
        "expert_gemm_act",
        "rows[rows(d), n], ends; weight[experts, 2m, n] -> rows[rows(d), m]: a gated activation of the product",
        Role.COMPUTE,
        ExpertGemmActAttrs,
        _ROWWISE,
    ),
    Kind("gemm", "x[.., n]; weight[m, n] -> y[.., m]", Role.COMPUTE, GemmAttrs, _TOKENWISE),
    Kind("activation", "x[.., n or 2n] -> y[.., n]", Role.MEMORY, ActAttrs, _ROWWISE),
    Kind(
        "identity",
        "x[tokens, hidden], experts, weights -> y[tokens, hidden]: x times the weights of its copies for some experts",
        Role.MEMORY,
        RowsAttrs,
    ),
    Kind("add", "a, b -> a + b", Role.MEMORY, NoAttrs, _TOKENWISE),
    Kind("mul", "a, b -> a * b, b may have one column", Role.MEMORY, NoAttrs, _TOKENWISE),
    Kind(
        "unpermute",
        "rows at home[k*tokens, hidden], place -> copies[k*tokens, hidden] in token order",
        Role.MEMORY,
        RowsAttrs,
        _TOKENWISE | _COLUMNS,
    ),
    Kind(
        "weighted_sum",
        "copies[k*tokens, hidden], weights -> y[tokens, hidden]",
        Role.MEMORY,
        RowsAttrs,
        _TOKENWISE | _COLUMNS,
    ),
    Kind(
        "unpermute_sum",
        "rows at home[k*tokens, hidden], place, weights (, addend) -> y[tokens, hidden]",
        Role.MEMORY,
        RowsAttrs,
        _TOKENWISE | _COLUMNS,
    ),
    # --- every rank has all tokens: rows stay, sums travel
    Kind("fetch", "counts -> the same, on their way to the host", Role.CONTROL, RowsAttrs),
    Kind(
        "own_rows",
        "order, sizes -> index int64[rows(d)]: the token copy in each row of a local expert; ends int32 per expert",
        Role.CONTROL,
        RowsAttrs,
        outs=(".index", ".ends"),
    ),
    Kind(
        "pick_rows",
        "x[tokens, hidden], index -> rows[rows(d), hidden], by expert",
        Role.MEMORY,
        RowsAttrs,
        frozenset({Axis.EXPERT_GROUP}),
    ),
    Kind(
        "place_rows",
        "rows[rows(d), hidden], index -> copies[k*tokens, hidden] in token order, zeros for experts of other ranks",
        Role.MEMORY,
        RowsAttrs,
    ),
    Kind(
        "all_reduce",
        "y[tokens, hidden], a part of a sum on each rank of a mesh axis -> the sum, on each of them",
        Role.TRANSFER,
        CollectiveAttrs,
        moves_rows=True,
    ),
    # --- ranks share an expert: each of them gets the rows of all, and makes a part of the sum
    Kind(
        "gather_counts", "counts of rows that come -> those of all ranks of etp", Role.TRANSFER, TransferAttrs, _BATCH
    ),
    Kind(
        "all_gather_rows",
        "received rows[gets(d), hidden], sizes -> rows[rows(d), hidden] of all ranks of etp, by rank, by source rank",
        Role.TRANSFER,
        TransferAttrs,
        _ROWWISE,
        moves_rows=True,
    ),
    Kind(
        "reduce_scatter_rows",
        "rows[rows(d), hidden], a part of a sum on each rank of etp, sizes -> rows[gets(d), hidden]: its own, summed",
        Role.TRANSFER,
        TransferAttrs,
        _ROWWISE,
        moves_rows=True,
    ),
    Kind(
        "split_tokens",
        "x[tokens, hidden], the same on all ranks of a mesh axis -> y[tokens(axis), hidden], this rank's share",
        Role.MEMORY,
        CollectiveAttrs,
    ),
    Kind(
        "all_gather",
        "y[tokens(axis), hidden] -> y[tokens, hidden]: the shares of all ranks of a mesh axis, on each of them",
        Role.TRANSFER,
        CollectiveAttrs,
        moves_rows=True,
    ),
    Kind(
        "reduce_scatter",
        "y[tokens, hidden], a part of a sum on each rank of a mesh axis -> y[tokens(axis), hidden], its share of it",
        Role.TRANSFER,
        CollectiveAttrs,
        moves_rows=True,
    ),
    # --- ranks that have the same tokens send a share of them each, and get the rows of all at home
    Kind(
        "layout_shares",
        "experts -> place int64[k*tokens]: where each token copy of all shares lies at home; counts by piece, by rank",
        Role.CONTROL,
        RowsAttrs,
        _BATCH,
        outs=(".place", ".counts"),
    ),
    Kind(
        "all_gather_copies",
        "rows at home[k*tokens(axis), hidden], sizes -> rows at home[k*tokens, hidden] of all ranks of a mesh axis",
        Role.TRANSFER,
        CollectiveAttrs,
        _COLUMNS | {Axis.PEER},
        moves_rows=True,
    ),
    # --- one-sided transfers: a rank stores into the memory of the others, where every token has a place, its slot
    Kind(
        "count",
        "experts -> within int32[k*tokens]: the rank of each token copy among those of its expert; counts per expert",
        Role.CONTROL,
        RowsAttrs,
        outs=(".within", ".counts"),
    ),
    Kind(
        "tell",
        "experts, weights, within, counts -> those of all ranks, at all ranks",
        Role.TRANSFER,
        TransferAttrs,
        outs=(".experts", ".weights", ".within", ".counts"),
        one_sided=True,
    ),
    Kind(
        "put_rows",
        "x[tokens, hidden], experts -> rows[slots, hidden] of the tokens of other ranks that have an expert here",
        Role.TRANSFER,
        TransferAttrs,
        one_sided=True,
        moves_rows=True,
    ),
    Kind(
        "copy_rows",
        "x[tokens, hidden] -> rows[slots, hidden] of all tokens of other ranks",
        Role.TRANSFER,
        TransferAttrs,
        one_sided=True,
        moves_rows=True,
    ),
    Kind(
        "locate",
        "experts, within, counts of all ranks -> place int32[k*slots]: the row of each token copy here, or -1; ends",
        Role.CONTROL,
        PlaceAttrs,
        outs=(".place", ".ends"),
    ),
    Kind(
        "aim",
        "the same -> place and ends; target int32[k*tokens]: the row of each copy of this rank's tokens at its owner",
        Role.CONTROL,
        PlaceAttrs,
        outs=(".place", ".ends", ".target"),
    ),
    Kind(
        "put_copies",
        "x[tokens, hidden], experts, target -> rows[rows(d), hidden], by expert: each copy where a product reads it",
        Role.TRANSFER,
        TransferAttrs,
        _GROUPS,
        one_sided=True,
        moves_rows=True,
    ),
    Kind(
        "expand",
        "x[tokens, hidden], rows[slots, hidden] of other ranks, place, counts -> rows[rows(d), hidden], by expert",
        Role.MEMORY,
        RowsAttrs,
        _GROUPS,
    ),
    Kind(
        "put_sums",
        "rows[rows(d), hidden], place, weights, counts -> sums[slots, hidden] at home: what experts of each rank made",
        Role.TRANSFER,
        TransferAttrs,
        _COLUMNS,
        one_sided=True,
        moves_rows=True,
    ),
    Kind(
        "put_back",
        "rows[rows(d), hidden], place, counts -> copies[k*tokens, hidden] at home, in token order",
        Role.TRANSFER,
        TransferAttrs,
        _GROUPS | _COLUMNS,
        one_sided=True,
        moves_rows=True,
    ),
    Kind(
        "expert_gemm_put",
        "rows[rows(d), n], ends, place, counts; weight[experts, m, n] -> copies[k*tokens, m] at home, in token order:"
        " the product of each row, stored there as it is made",
        Role.COMPUTE,
        ExpertGemmPutAttrs,
        one_sided=True,
        moves_rows=True,
    ),
    Kind(
        "sum_copies",
        "copies[k*tokens, hidden] at home, weights (, addend) -> y[tokens, hidden]",
        Role.MEMORY,
        RowsAttrs,
        _COLUMNS,
    ),
    Kind(
        "sum_ranks",
        "sums[slots, hidden], experts (, addend) -> y[tokens, hidden]",
        Role.MEMORY,
        RowsAttrs,
        _COLUMNS,
    ),
    Kind("call", "values -> value, by a module that epsc does not look into", Role.COMPUTE, CallAttrs, _BATCH),
)
