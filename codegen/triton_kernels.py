"""Kernels: the text of Triton kernels, and of the functions that launch them, for what one program asks of them.

The text goes into a program once `head` stands before it. It asks for `from __future__ import annotations`, `Any`,
`torch` and `Tensor`, and for triton only when something is launched.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources

from jinja2 import Environment, StrictUndefined

from epsc.codegen.triton_route import route_facts
from epsc.ir.attrs import Act, ActAttrs, RouteAttrs


def head(*, descriptors: bool = True, sums: bool = True) -> str:
    """What every kernel needs: triton where it is there, and names for it where it is not; for `expert_gemm` also
    `descriptors` of tensors, and for it and `copy_ranks` what makes `sums`."""
    return rendered("triton_head.jinja", descriptors=descriptors, sums=sums)


def weighted_sum(name: str = "fused_weighted_sum", selective: bool = False) -> str:
    """`name(rows, place, weights, out=None, addend=None)`: y[t] = sum of w[t, k] * rows[place[t, k]] (+ addend[t]).

    `selective`: a place of -1 is that of a copy with no row.
    """
    return rendered("triton_weighted_sum.jinja", name=name, selective=selective)


def activation(name: str, attrs: ActAttrs) -> str:
    """`name(x, out)`: the activation of `attrs`, with the parameters of `functions.activation_function`."""
    at = "rows * WIDTH + columns"
    load = [f"x = tl.load(x + {at}, inside, 0.0).to(tl.float32)"]
    doc = f"{attrs.fn}, elementwise, in fp32."
    if attrs.fn.gated:
        load = [
            "gate = tl.load(x + rows * (2 * WIDTH) + columns, inside, 0.0).to(tl.float32)",
            "up = tl.load(x + rows * (2 * WIDTH) + WIDTH + columns, inside, 0.0).to(tl.float32)",
        ]
        doc = f"{attrs.fn} in fp32: gate and up are halves of `x`."
    if attrs.fn.gated and attrs.interleaved:
        load = [
            "# Pairs are loaded as they lie, and parted in registers: a load of every other element wastes half.",
            "both = program % PIECES * (2 * COLUMNS) + tl.arange(0, 2 * COLUMNS)[None, :]",
            "there = (rows < count) & (both < 2 * WIDTH)",
            "pairs = tl.load(x + rows * (2 * WIDTH) + both, there, 0.0).to(tl.float32)",
            "gate, up = tl.split(tl.reshape(pairs, (ROWS, COLUMNS, 2)))",
        ]
        doc = f"{attrs.fn} in fp32: gate and up are alternating columns of `x`."
    return rendered("triton_activation.jinja", name=name, load=load, compute=activation_lines(attrs), doc=doc)


def activation_lines(attrs: ActAttrs) -> list[str]:
    """Lines that make `result` of the fp32 tensor `x`, or of `gate` and `up`.

    Clamps are comparisons, because Triton's minimum and maximum hide NaN, and torch's do not.
    """
    limit = attrs.limit
    if not attrs.fn.gated:
        lines = [f"x = {_clamped('x', limit)}"] if limit > 0 else []
        return [*lines, f"result = {_UNGATED[attrs.fn]}"]
    lines = [f"gate = tl.where(gate > {limit!r}, {limit!r}, gate)", f"up = {_clamped('up', limit)}"]
    lines = lines if limit > 0 else []
    gate = _gelu("gate") if attrs.fn is Act.GEGLU else _gelu_tanh("gate")
    if attrs.fn is Act.SWIGLU:
        gate = _silu("gate", attrs.alpha, "linear" if attrs.gate_softcap > 0 else "gate")
        lines += _softcapped("linear", "gate", attrs.gate_softcap) if attrs.gate_softcap > 0 else []
        lines += _softcapped("up", "up", attrs.up_softcap) if attrs.up_softcap > 0 else []
    up = f"(up + {attrs.offset!r})" if attrs.offset else "up"
    return [*lines, f"result = {gate} * {up}"]


def scatter_rows() -> str:
    """`scatter_rows(rows, index, out)`: out[index[i]] = rows[i]. (For a gather, torch's index_select is as fast.)"""
    return rendered("triton_scatter_rows.jinja")


def ordering() -> str:
    """What every `route` needs, once."""
    return rendered("triton_ordered.jinja")


def route(name: str, attrs: RouteAttrs) -> str:
    """`name`: the router of `attrs`, with the parameters and the results of `functions.route_function`."""
    return rendered("triton_route.jinja", **route_facts(name, attrs))


def copy_ranks() -> str:
    """`copy_ranks(experts, count_experts, within=None, counts=None)`: which copy for its expert each copy is."""
    return rendered("triton_copy_ranks.jinja")


ONE_SIDED = (
    "put_rows",
    "aim",
    "put_copies",
    "expand",
    "put_sums",
    "put_back",
    "expert_gemm_put",
    "sum_copies",
    "sum_ranks",
)
"""Kinds of ops whose kernels a program has only if it has such an op. It always signals, tells and locates."""


def one_sided(kinds: Collection[str], *, several: bool = False) -> str:
    """What `Symmetric` and `Slots` of a program with ops of these kinds launch; of `several` plans each has its own
    room."""
    parts = ["signals", "tell", "locate", *(kind for kind in ONE_SIDED if kind in kinds), "programs"]
    most = "slots.most" if several else "MOST"
    return "".join(rendered(f"triton_one_sided_{part}.jinja", most=most) for part in parts)


def rank_rows(*, by_expert: bool, by_token: bool) -> str:
    """`rank_rows(layout, experts)`, for the layouts that a program has; what it gives is that of `sort_rows`."""
    runs, experts = "token_runs(experts.contiguous(), layout.pieces, layout.local)", "experts.contiguous()"
    if by_expert:
        runs = f"{runs} if isinstance(layout, ByToken) else {experts}" if by_token else experts
    return rendered("triton_layout.jinja", by_token=by_token, runs=runs)


def tiles() -> str:
    """What every `expert_gemm` needs, once."""
    return rendered("triton_tiles.jinja") + rendered("triton_ends_at.jinja")


def _clamped(name: str, limit: float) -> str:
    return f"tl.where({name} > {limit!r}, {limit!r}, tl.where({name} < {-limit!r}, {-limit!r}, {name}))"


def _gelu(name: str) -> str:
    return f"0.5 * {name} * (1.0 + tl.erf({name} * 0.7071067811865476))"


def _gelu_tanh(name: str) -> str:
    """1 + tanh(u) is 2 / (1 + exp(-2u))."""
    return f"{name} / (1.0 + tl.exp(-1.5957691216 * {name} * (1.0 + 0.044715 * {name} * {name})))"


def _silu(name: str, alpha: float = 1.0, linear: str = "") -> str:
    return f"{linear or name} / (1.0 + tl.exp({-alpha!r} * {name}))"


def _softcapped(name: str, of: str, cap: float) -> list[str]:
    """Lines that make `name` of `of`. Its tanh is of exponents; near 0, where their difference is lost, a series."""
    return [
        f"{name} = {of} / {cap!r}",
        f"near = {name} * (1.0 - {name} * {name} * (0.3333333333 - 0.1333333333 * {name} * {name}))",
        f"far = 2.0 / (1.0 + tl.exp(-2.0 * {name})) - 1.0",
        f"{name} = {cap!r} * tl.where(tl.abs({name}) < 0.0625, near, far)",
    ]


_UNGATED = {
    Act.RELU: "tl.where(x < 0.0, 0.0, x)",
    Act.RELU2: "tl.where(x < 0.0, 0.0, x * x)",
    Act.SILU: _silu("x"),
    Act.GELU: _gelu("x"),
    Act.GELU_TANH: _gelu_tanh("x"),
    Act.SIGMOID: "1.0 / (1.0 + tl.exp(-x))",
}


def rendered(template: str, **facts: object) -> str:
    environment = Environment(
        undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = (resources.files("epsc.codegen") / "templates" / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(facts)
