"""The table of implementations: for each op kind, what can run it, what that needs, occupies and costs.

Of one kind the one to prefer stands first: a schedule that names none gets the first that can run there.

Adding an implementation is one entry here and one template macro of the same name in `codegen/templates`.
A *choice* between implementations is part of a Schedule; conditions are on numbers that the run knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from epsc.ir.dims import DType
from epsc.ir.errors import Diagnostic, EpsError


class Resource(StrEnum):
    """What a running op takes away from others."""

    SMS = "sms"
    COPY_ENGINE = "copy_engine"
    INTRA_LINK = "intra_link"
    INTER_LINK = "inter_link"
    HOST_LINK = "host_link"
    HBM = "hbm"
    HOST = "host"


class Bound(StrEnum):
    """Which rate an implementation runs at: the axis of its roofline."""

    FLOPS = "flops"
    HBM = "hbm"
    LINK = "link"
    LATENCY = "latency"


@dataclass(frozen=True)
class Needs:
    """What must be there: checked when a plan is made, and again by the program at start."""

    device: str = "any"
    """`cuda`, `cpu` or `any`."""
    capability: tuple[int, int] = (0, 0)
    """Least compute capability, on CUDA."""
    dtypes: frozenset[DType] = frozenset({DType.BF16, DType.FP16, DType.FP32})
    align: int = 1
    """Rows must be a multiple of this many bytes."""


@dataclass(frozen=True)
class Cost:
    """First-order cost: launches, the rate it is bound by, and the share of that rate that it reaches."""

    bound: Bound
    efficiency: float
    launches: int = 1
    padding: bool = False
    """Pads every expert to the largest: flops are those of the padded product."""
    activation_after: bool = False
    """A launch more reads what the product wrote, and makes the activation of it."""
    bias_after: bool = False
    """A bias is added to what the product wrote, in launches of their own."""
    two_level: bool = False
    """Rows go within the node first and then between nodes, or the other way, and are put in order before either."""
    triton: bool = False
    """Its launches on CUDA are Triton's, which take the host longer than torch's."""
    longest_of: tuple[tuple[str, str], ...] = ()
    """It was never measured, and is taken for as long as the longest of these (kinds and implementations) takes for
    the same amounts: it does in one launch what they do one after the other."""
    keeps_sms: bool = True
    """Keeps to the SMs that it is told to: cuBLAS takes every SM whatever torch's carve-out says."""
    sm_programs: int = 1
    """Of a one-sided transfer by SMs: programs for each SM that it keeps to."""
    turn_columns: tuple[int, ...] = ()
    """Of a one-sided transfer by SMs: columns of a row that a program moves at once, whichever leaves least empty."""


@dataclass(frozen=True)
class Impl:
    name: str
    kind: str
    doc: str
    needs: Needs
    occupies: frozenset[Resource]
    cost: Cost
    template: str
    """The Jinja macro that writes the call."""


_GPU_SMS = frozenset({Resource.SMS, Resource.HBM})


def _torch(
    kind: str, doc: str, bound: Bound = Bound.HBM, efficiency: float = 0.7, launches: int = 1, device: str = "any"
) -> Impl:
    return Impl("torch", kind, doc, Needs(device), _GPU_SMS, Cost(bound, efficiency, launches), kind)


def _triton(kind: str, doc: str, launches: int = 1) -> Impl:
    return Impl("triton", kind, doc, Needs(device="cuda"), _GPU_SMS, Cost(Bound.HBM, 0.8, launches, triton=True), kind)


def _one_sided(name: str, kind: str, doc: str, bound: Bound = Bound.LINK, home: bool = False) -> Impl:
    """On CUDA a Triton kernel over symmetric memory, on CPU torch ops over memory that processes share."""
    occupies = _GPU_SMS | {Resource.INTRA_LINK}
    # As the kernels do it: rows that leave are moved whole, those that go home in pieces, by more and smaller programs.
    programs, columns = (4, (1024, 512, 256)) if home else (1, (8192,))
    cost = Cost(bound, 0.75, triton=True, sm_programs=programs, turn_columns=columns)
    return Impl(name, kind, doc, Needs(), occupies, cost, kind)


def _collectives(kind: str, bound: Bound = Bound.LINK) -> tuple[Impl, Impl]:
    """A collective of torch.distributed, by NCCL and by gloo."""
    return (
        Impl(
            "nccl",
            kind,
            f"{kind} over NCCL",
            Needs(device="cuda"),
            frozenset({Resource.SMS, Resource.INTRA_LINK}),
            Cost(bound, 0.65),
            kind,
        ),
        Impl(
            "gloo",
            kind,
            f"{kind} over gloo, on a thread of its own",
            Needs(device="cpu"),
            frozenset({Resource.INTRA_LINK}),
            Cost(bound, 0.8),
            kind,
        ),
    )


_EXPERT_GEMMS = (
    Impl(
        "persistent",
        "expert_gemm",
        "one persistent Triton launch for all experts, over TMA",
        Needs(device="cuda", capability=(9, 0), dtypes=frozenset({DType.BF16, DType.FP16}), align=16),
        _GPU_SMS,
        Cost(Bound.FLOPS, 0.92, launches=2, triton=True),
        "expert_gemm",
    ),
    Impl(
        "grouped",
        "expert_gemm",
        "one torch grouped_mm launch for all experts of the group",
        Needs(capability=(9, 0), align=16),
        _GPU_SMS,
        Cost(Bound.FLOPS, 0.85, bias_after=True),
        "expert_gemm",
    ),
    Impl(
        "dense",
        "expert_gemm",
        "one mm per expert into its rows of the output",
        Needs(),
        _GPU_SMS,
        Cost(Bound.FLOPS, 0.88, launches=0, keeps_sms=False),
        "expert_gemm",
    ),
    Impl(
        "batched",
        "expert_gemm",
        "one bmm over experts padded to the largest",
        Needs(),
        _GPU_SMS,
        Cost(Bound.FLOPS, 0.9, launches=3, padding=True, bias_after=True, keeps_sms=False),
        "expert_gemm",
    ),
)


def _with_activation(gemm: Impl) -> Impl:
    """The same, and the activation of what it makes: by the persistent kernel itself, or in a launch of its own."""
    inside = gemm.name == "persistent"
    doc = f"{gemm.doc}; {'the activation is of its fp32 sums' if inside else 'then the activation'}"
    cost = replace(gemm.cost, activation_after=not inside)
    return replace(gemm, kind="expert_gemm_act", doc=doc, cost=cost, template="expert_gemm_act")


IMPLS: tuple[Impl, ...] = (
    *_EXPERT_GEMMS,
    *map(_with_activation, _EXPERT_GEMMS),
    Impl(
        "nccl",
        "all2all",
        "torch.distributed all_to_all_single over NCCL",
        Needs(device="cuda"),
        frozenset({Resource.SMS, Resource.INTRA_LINK}),
        Cost(Bound.LINK, 0.65),
        "all2all",
    ),
    Impl(
        "gloo",
        "all2all",
        "torch.distributed all_to_all_single over gloo, on a thread of its own",
        Needs(device="cpu"),
        frozenset({Resource.INTRA_LINK}),
        Cost(Bound.LINK, 0.8),
        "all2all",
    ),
    Impl(
        "two_level",
        "all2all",
        "two of them, by NCCL or gloo: within the node, and between the ranks of one place in each node",
        Needs(),
        frozenset({Resource.SMS, Resource.INTRA_LINK, Resource.INTER_LINK}),
        Cost(Bound.LINK, 0.65, launches=4, two_level=True),
        "all2all_two_level",
    ),
    Impl(
        "nccl",
        "exchange",
        "counts over NCCL",
        Needs(device="cuda"),
        frozenset({Resource.SMS, Resource.INTRA_LINK}),
        Cost(Bound.LATENCY, 1.0),
        "exchange",
    ),
    Impl(
        "gloo",
        "exchange",
        "counts over gloo",
        Needs(device="cpu"),
        frozenset({Resource.INTRA_LINK}),
        Cost(Bound.LATENCY, 1.0),
        "exchange",
    ),
    *_collectives("all_gather_rows"),
    *_collectives("all_gather_copies"),
    *_collectives("reduce_scatter_rows"),
    *_collectives("gather_counts", Bound.LATENCY),
    *_collectives("pass_counts", Bound.LATENCY),
    *_collectives("all_reduce"),
    *_collectives("all_gather"),
    *_collectives("reduce_scatter"),
    _one_sided("put", "tell", "a kernel stores what every rank must know into its memory", Bound.LATENCY),
    _one_sided("put", "put_rows", "a kernel stores each row once into the memory of every rank that has use for it"),
    _one_sided("put", "put_copies", "a kernel stores each copy of a row where the product of its expert reads it"),
    Impl(
        "copy",
        "copy_rows",
        "a copy engine stores all rows into the memory of every other rank: no SMs, and no waiting for the router",
        Needs(),
        frozenset({Resource.COPY_ENGINE, Resource.INTRA_LINK}),
        Cost(Bound.LINK, 0.85),
        "copy_rows",
    ),
    _one_sided("put", "put_sums", "a kernel weighs and sums a token's rows here and stores the sum at home", home=True),
    _one_sided("put", "put_back", "a kernel stores each row at home, as it is", home=True),
    Impl(
        "direct",
        "expert_gemm_put",
        "one persistent Triton launch for all experts stores each row where its copy belongs at home; on CPU"
        " grouped_mm, then each row",
        Needs(capability=(9, 0), dtypes=frozenset({DType.BF16, DType.FP16}), align=16),
        _GPU_SMS | {Resource.INTRA_LINK},
        Cost(
            Bound.FLOPS,
            0.92,
            launches=3,
            triton=True,
            longest_of=(("expert_gemm", "persistent"), ("put_back", "put")),
        ),
        "expert_gemm_put",
    ),
    Impl(
        "pinned",
        "sizes",
        "a copy to pinned memory and one event wait on the host",
        Needs(),
        frozenset({Resource.HOST_LINK, Resource.HOST}),
        Cost(Bound.LATENCY, 1.0),
        "sizes",
    ),
    Impl(
        "pinned",
        "weight_copy",
        "a copy engine brings an expert's weight from pinned memory of the host; nothing if it has no rows",
        Needs(),
        frozenset({Resource.COPY_ENGINE, Resource.HOST_LINK}),
        Cost(Bound.LINK, 0.9),
        "weight_copy",
    ),
    _triton("route", "mm, then one kernel that scores, chooses and weighs", launches=2),
    _torch("route", "torch ops", Bound.HBM, 0.5, launches=5),
    _triton("layout", "histograms of blocks, ranks within them, then places", launches=3),
    _torch("layout", "one stable sort, one histogram", Bound.HBM, 0.2, launches=6),
    _torch("arrange", "repeat_interleave of offsets", Bound.HBM, 0.2, launches=6),
    _torch("permute", "index_select"),
    _torch("regroup", "index_select"),
    _triton("ungroup", "one kernel that moves 16 bytes at a time, where index_copy_ moves an element"),
    _torch("ungroup", "index_copy_", efficiency=0.28),
    _torch("layout_shares", "one stable sort of the copies of all shares", Bound.HBM, 0.2, launches=12),
    _torch("fetch", "a copy to pinned memory", Bound.LATENCY, 1.0),
    _torch("own_rows", "a slice of the order, and prefix sums on the host", Bound.LATENCY, 1.0),
    _torch("pick_rows", "index_select"),
    _torch("split_tokens", "a copy of a slice"),
    _torch("place_rows", "zeros, then index_copy_", launches=2, efficiency=0.28),
    Impl("torch", "gemm", "mm", Needs(), _GPU_SMS, Cost(Bound.FLOPS, 0.85, keeps_sms=False), "gemm"),
    _triton("activation", "one kernel"),
    _torch("activation", "elementwise torch ops", launches=2, efficiency=0.25),
    _torch("identity", "the sum of some weights, and a product", launches=4),
    _torch("add", "add"),
    _torch("mul", "mul"),
    _torch("unpermute", "index_select"),
    _torch("weighted_sum", "bmm with the weights", efficiency=0.5),
    _triton("unpermute_sum", "one kernel that gathers, weighs and sums in fp32"),
    _torch("unpermute_sum", "index_select, then bmm with the weights", efficiency=0.14, launches=3),
    _triton("count", "histograms of blocks, then ranks within them"),
    _torch("count", "one-hot prefix sums", Bound.HBM, 0.1, launches=6, device="cpu"),
    _triton("locate", "one kernel"),
    _torch("locate", "prefix sums and a gather", Bound.HBM, 0.1, launches=8, device="cpu"),
    _triton("aim", "two kernels"),
    _torch("aim", "prefix sums and two gathers", Bound.HBM, 0.1, launches=10, device="cpu"),
    _triton("expand", "one kernel that reads a token once for all of its copies"),
    _torch("expand", "index_select and index_copy_", launches=2, device="cpu"),
    _triton("sum_copies", "one kernel that weighs and sums in fp32"),
    _torch("sum_copies", "a weighted sum", launches=3, device="cpu"),
    _triton("sum_ranks", "one kernel that sums in fp32 what ranks sent"),
    _torch("sum_ranks", "a masked sum", launches=3, device="cpu"),
    _torch("call", "the module that the user gave", Bound.FLOPS, 0.6),
)


def impls_of(kind: str) -> dict[str, Impl]:
    """Implementations of an op kind, by name, in the table's order."""
    return {impl.name: impl for impl in IMPLS if impl.kind == kind}


class Metric(StrEnum):
    """Numbers that a choice may look at. Rows are those of the op's own chunk, on this rank."""

    ROWS = "rows"
    """Rows that arrived for the expert group."""
    MEAN_ROWS = "mean_rows"
    """Rows per expert of the group, rounded down: what a GEMM's speed depends on."""
    MAX_ROWS = "max_rows"
    """Rows of the fullest expert of the group."""
    TOKENS = "tokens"
    """Rows of the layer's input on this rank, the same for all chunks."""
    DEVICE = "device"
    """`cuda` or `cpu`, known when the program starts."""


@dataclass(frozen=True)
class Condition:
    metric: Metric
    op: str
    """One of < <= > >= == !=."""
    value: int | str

    def __str__(self) -> str:
        return f"{self.metric} {self.op} {self.value}"


@dataclass(frozen=True)
class Choice:
    """`A when C else B when D else E`: the first whose condition holds, else the last."""

    otherwise: str
    cases: tuple[tuple[str, Condition], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every implementation that may be taken, in order, each once."""
        return tuple(dict.fromkeys([*(name for name, _ in self.cases), self.otherwise]))

    def possible(self, device: str) -> tuple[str, ...]:
        """The implementations that may be taken on `device`, in order, each once."""
        found = []
        for name, condition in self.cases:
            if condition.metric is not Metric.DEVICE:
                found.append(name)
            elif _holds(device, condition.op, condition.value):
                return tuple(dict.fromkeys([*found, name]))
        return tuple(dict.fromkeys([*found, self.otherwise]))

    def pick(self, known: dict[Metric, int | str]) -> str:
        """The implementation for the numbers `known` (all that the conditions name must be there)."""
        return next((name for name, c in self.cases if _holds(known[c.metric], c.op, c.value)), self.otherwise)

    def __str__(self) -> str:
        return " else ".join([*(f"{name} when {c}" for name, c in self.cases), self.otherwise])

    @staticmethod
    def parse(text: str) -> Choice:
        *cases, otherwise = text.split(" else ")
        parsed = []
        for case in cases:
            found = re.fullmatch(r"(\w+) when (\w+) (<|<=|>|>=|==|!=) (\w+)", case.strip())
            if not found or found[2] not in set(Metric):
                raise EpsError(Diagnostic("bad-choice", f"`{case}` does not read `IMPL when METRIC < NUMBER`"))
            value = int(found[4]) if found[4].isdigit() else found[4]
            parsed.append((found[1], Condition(Metric(found[2]), found[3], value)))
        if not re.fullmatch(r"\w+", otherwise.strip()):
            raise EpsError(Diagnostic("bad-choice", f"`{otherwise}` is not the name of an implementation"))
        return Choice(otherwise.strip(), tuple(parsed))


def _holds(left: int | str, op: str, right: int | str) -> bool:
    if op == "==":
        return left == right
    if op == "!=":
        return left != right
    if not (isinstance(left, int) and isinstance(right, int)):
        raise TypeError(f"`{left} {op} {right}` compares no numbers")
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[op]
