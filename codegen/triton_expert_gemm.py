"""The persistent expert product: the text of its kernel, as an activation, a bias and the weights' layout ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from epsc.codegen.lines import WIDTH
from epsc.codegen.triton_kernels import activation_lines, rendered
from epsc.ir.attrs import ActAttrs
from epsc.machine.tiles import DEFAULT, Tile

Cuts = Mapping[tuple[int, int], Mapping[int, Tile]]
"""Columns and depth of the weights of an expert -> from so many rows per expert on, which tile."""


def expert_gemm(
    name: str,
    attrs: ActAttrs | None = None,
    cuts: Cuts | None = None,
    *,
    bias: bool = False,
    turned: bool = False,
    home: bool = False,
) -> str:
    """`name(rows, weight, ends, out, programs=0, tile=None, expected=0)`: each expert on its rows, then the gated
    activation of `attrs`, cut as `cuts` say. With `bias` it takes one of those too, or None; with `turned`,
    also weights that lie as [in, out]; with `home`, instead of `out`, the address that each row of the result goes to.
    """
    form = _HOME if home else _form(attrs)
    return rendered(
        "triton_expert_gemm.jinja",
        name=name,
        form=form,
        bias=bias,
        turned=turned,
        home=home,
        activation=activation_lines(attrs) if attrs else [],
        table=f"{name.upper()}_TILES",
        cuts=_cut_lines(cuts or {(1, 1): DEFAULT}),
    )


@dataclass(frozen=True)
class _Form:
    """How the tiles of an expert product lie in its weights, and what becomes of them."""

    doc: str
    wide: str = "out"
    out_columns: str = "COLUMNS"
    """Columns of the result that a tile makes."""
    stored: str = "COLUMNS // 2"
    """Those that are stored at a time."""
    column: str = "column"
    """Where the tile's columns begin in the weights."""
    block: str = "[1, tile.columns, tile.depth]"
    shape: str = "[experts, wide, deep]"
    expert: str = "expert"
    """Its place in the descriptor of the weights."""
    describe: str = ""
    halves: bool = False
    """Gate and up are halves of the weights: of weights that lie as [in, out] a tile takes two loads and two dots."""
    split: tuple[str, ...] = ()
    results: tuple[tuple[str, str], ...] = (("result", "column"),)
    """What is stored, and from which column on."""
    places: tuple[str, ...] = ("at = column + tl.arange(0, COLUMNS)", "inside = at < WIDTH")
    """Lines that say where in the bias the columns of the tile are, and whether they are there."""


def _form(attrs: ActAttrs | None) -> _Form:
    if attrs is None:
        return _Form(
            "The rows of each expert times its weight, summed in fp32.",
            split=(
                "# In two halves: the room that a whole tile would take is worth one more load under way.",
                "left, right = tl.split(tl.permute(total.reshape(ROWS, 2, STORED), (0, 2, 1)))",
            ),
            results=(("left", "column"), ("right", "column + STORED")),
        )
    doc = f"The rows of each expert times its weight, and {attrs.fn} of the fp32 sums, in one launch."
    if attrs.interleaved:
        return _Form(
            doc,
            wide="2 * out",
            out_columns="COLUMNS // 2",
            stored="OUT_COLUMNS",
            column="2 * column",
            split=("gate, up = tl.split(total.reshape(ROWS, OUT_COLUMNS, 2))",),
            places=("at = 2 * column + tl.arange(0, COLUMNS)", "inside = at < 2 * WIDTH"),
        )
    return _Form(
        doc,
        wide="2 * out",
        out_columns="COLUMNS // 2",
        stored="OUT_COLUMNS",
        block="[2, tile.columns // 2, tile.depth]",
        shape="[2 * experts, wide // 2, deep]",
        expert="2 * expert",
        describe="# Gate and up of an expert are a dimension of their own, so that one load takes rows of both.",
        halves=True,
        split=(
            "# A row of the tile is in one warp, gate and up of a column in one thread: this moves nothing.",
            "gate, up = tl.split(tl.permute(total.reshape(ROWS, 2, OUT_COLUMNS), (0, 2, 1)))",
        ),
        places=(
            "at = column + tl.arange(0, COLUMNS) % OUT_COLUMNS",
            "inside = at < WIDTH",
            "at += tl.arange(0, COLUMNS) // OUT_COLUMNS * WIDTH",
        ),
    )


_HOME = replace(
    _form(None), doc="The rows of each expert times its weight, summed in fp32, and each stored where it is wanted."
)


def _cut_lines(cuts: Cuts) -> list[str]:
    lines = []
    for shape, steps in cuts.items():
        entries = [f"{rows}: {tile}" for rows, tile in steps.items()]
        flat = f"    {shape}: {{{', '.join(entries)}}},"
        lines += (
            [flat] if len(flat) <= WIDTH else [f"    {shape}: {{", *(f"        {each}," for each in entries), "    },"]
        )
    return lines
