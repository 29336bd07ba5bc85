"""What each kind of op has to be told besides its inputs: frozen, scalar fields only, so that they print and parse."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum

from epsc.ir.amount import Amount


class Score(StrEnum):
    """How router logits become scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class Choose(StrEnum):
    """Whether the top-k choice is made on scores, or on logits that are scored afterwards over the chosen k."""

    BY_SCORE = "by_score"
    BY_LOGIT = "by_logit"


class GroupBy(StrEnum):
    """The score of a group of experts in group-limited routing."""

    MAX = "max"
    """The best expert of the group (DeepSeek-V2)."""
    TOP2 = "top2"
    """The sum of the best two (DeepSeek-V3)."""


@dataclass(frozen=True)
class RouteAttrs:
    """A top-k router over `experts` experts.

    score -> (+ choice bias) -> keep `top_groups` of `groups` -> top `top_k` -> weights are the scores of the chosen,
    without the bias -> divided by their sum if `renorm` -> times `scale`.
    """

    experts: int
    top_k: int
    score: Score = Score.SOFTMAX
    choose: Choose = Choose.BY_SCORE
    choice_bias: bool = False
    """A learned bias per expert, added for the choice only (DeepSeek-V3); the parameter `<name>.choice_bias`."""
    bias: bool = False
    """A bias on the logits (GPT-OSS); the parameter `<name>.bias`."""
    groups: int = 1
    top_groups: int = 1
    group_by: GroupBy = GroupBy.MAX
    renorm: bool = False
    scale: float = 1.0
    threshold: float = 0.0
    """A copy whose weight is below this, before `renorm` and `scale`, goes nowhere: its expert is -1."""
    weighted: bool = True
    """False: what the chosen experts make is summed as it is (times `scale`); scores choose only (MoEfication)."""


@dataclass(frozen=True)
class RoutingAttrs:
    """A routing that was decided outside of the layer, over `experts` experts. No op: `routing` only names values."""

    experts: int
    partial: bool = False
    """Some copies go nowhere: their expert is -1 (of a router with a capacity)."""


@dataclass(frozen=True)
class RowsAttrs:
    """An op on routed rows: which route sent them, over how many experts.

    A dispatch that is `selective` takes only the copies for its own experts, `first` and those after it, out of all
    `among` which a token chooses; the others go nowhere. So does a copy whose expert is -1.
    """

    experts: int
    top_k: int
    first: int = 0
    among: int = 0
    """0: it takes every copy."""
    etp: int = field(default=1, kw_only=True)
    """Ranks that share an expert, each of which gets the rows of all of them."""
    over: str = field(default="", kw_only=True)
    """Of a combine: the mesh axis whose ranks sent a share of the tokens each, and get what comes home to all."""

    @property
    def selective(self) -> bool:
        return self.among > 0

    @property
    def share(self) -> float:
        """Of the copies of tokens that choose evenly, those that it takes."""
        return self.experts / self.among if self.among else 1.0


@dataclass(frozen=True)
class RangeAttrs:
    """Some of the experts of a route, `first` and those after it; `experts` 0: up to the last. No op: an argument."""

    first: int = 0
    experts: int = 0


@dataclass(frozen=True)
class PlaceAttrs(RowsAttrs):
    """Where rows that travel one-sided lie at the experts, and how many there is room for."""

    room: float = 0.0
    """How many times the rows of balanced routing; 0: room for every copy of every token."""


class Direction(StrEnum):
    DISPATCH = "dispatch"
    COMBINE = "combine"


@dataclass(frozen=True)
class TransferAttrs:
    """An all2all over the mesh axis `mesh`; `direction` tells rows to experts from rows back home."""

    direction: Direction
    experts: int
    top_k: int
    mesh: str = "ep"


@dataclass(frozen=True)
class CollectiveAttrs:
    """A collective on rows of tokens over the mesh axis `mesh`."""

    mesh: str


@dataclass(frozen=True)
class GemmAttrs:
    """`x @ weight^T (+ bias)`; a weight is [out, in], an expert weight [experts, out, in], as in checkpoints.

    `transposed`: the checkpoint stores [in, out] instead (GPT-OSS).
    """

    out: int
    bias: bool = False
    transposed: bool = False


@dataclass(frozen=True)
class ExpertGemmAttrs:
    """One `gemm` per expert on the rows that chose it; `experts` counts all experts, not the local ones."""

    experts: int
    out: int
    bias: bool = False
    transposed: bool = False
    slots: int = 0
    """Its weight is read from so many slots, which a `weight_copy` fills; 0: from where the module keeps it."""


@dataclass(frozen=True)
class SlotAttrs:
    """The weight of `experts` experts, that of a rank's e-th in slot e mod `slots`."""

    experts: int
    slots: int


class Act(StrEnum):
    """Elementwise functions. A gated one halves the width: act(gate) * up."""

    SWIGLU = "swiglu"
    GEGLU = "geglu"
    GEGLU_TANH = "geglu_tanh"
    RELU = "relu"
    RELU2 = "relu2"
    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    SIGMOID = "sigmoid"

    @property
    def gated(self) -> bool:
        return self in (Act.SWIGLU, Act.GEGLU, Act.GEGLU_TANH)


@dataclass(frozen=True)
class ActAttrs:
    """An activation.

    Gated: the input holds gate and up as halves, or alternating when `interleaved`; the result is
    f(gate) * (up + offset). With `limit` > 0, gate is clamped to at most `limit`, up to [-limit, limit] (GPT-OSS; for
    an ungated function the input is clamped to [-limit, limit]). SwiGLU's f is x * sigmoid(alpha * x); with a softcap
    c > 0 that x, and up, are c * tanh(x / c) (Inkling2).
    """

    fn: Act
    limit: float = 0.0
    alpha: float = 1.0
    offset: float = 0.0
    interleaved: bool = False
    gate_softcap: float = 0.0
    up_softcap: float = 0.0

    @property
    def unread(self) -> tuple[str, ...]:
        """Options that say something, which this function does not read."""
        plain = ActAttrs(self.fn)
        reads = {"fn", "limit"}
        if self.fn.gated:
            reads |= {"offset", "interleaved"}
        if self.fn is Act.SWIGLU:
            reads |= {"alpha", "gate_softcap", "up_softcap"}
        return tuple(
            f.name for f in fields(self) if f.name not in reads and getattr(self, f.name) != getattr(plain, f.name)
        )


@dataclass(frozen=True)
class ExpertGemmActAttrs(ExpertGemmAttrs):
    """An expert gemm whose result goes through a gated activation at once: `out` is the width in between, gate and up.

    The other fields are those of `ActAttrs`.
    """

    fn: Act = field(kw_only=True)
    limit: float = field(default=0.0, kw_only=True)
    alpha: float = field(default=1.0, kw_only=True)
    offset: float = field(default=0.0, kw_only=True)
    interleaved: bool = field(default=False, kw_only=True)
    gate_softcap: float = field(default=0.0, kw_only=True)
    up_softcap: float = field(default=0.0, kw_only=True)

    @property
    def act(self) -> ActAttrs:
        return ActAttrs(**{each.name: getattr(self, each.name) for each in fields(ActAttrs)})

    @property
    def width(self) -> int:
        """Columns of the result."""
        return self.out // 2

    @staticmethod
    def joined(gemm: ExpertGemmAttrs, act: ActAttrs) -> ExpertGemmActAttrs:
        return ExpertGemmActAttrs(
            gemm.experts,
            gemm.out,
            gemm.bias,
            gemm.transposed,
            gemm.slots,
            **{each.name: getattr(act, each.name) for each in fields(act)},
        )


@dataclass(frozen=True)
class ExpertGemmPutAttrs(ExpertGemmAttrs):
    """An expert gemm that stores each row of its result at home, where the copies of a token have `top_k` places."""

    top_k: int = field(kw_only=True)

    @staticmethod
    def joined(gemm: ExpertGemmAttrs, put: TransferAttrs) -> ExpertGemmPutAttrs:
        return ExpertGemmPutAttrs(gemm.experts, gemm.out, gemm.bias, gemm.transposed, top_k=put.top_k)


@dataclass(frozen=True)
class CallAttrs:
    """A module that epsc does not look into (attention, a norm), filled in by the user of the program.

    What it costs is what its writer says: FLOP and bytes of memory besides its values, or the microseconds that it was
    measured to take, by the tokens of a rank. Without a word, predictions take it for the products of attention.
    """

    module: str
    flops: Amount = Amount()
    bytes: Amount = Amount()
    us: Amount = Amount()


@dataclass(frozen=True)
class NoAttrs:
    """Nothing to say."""


Attrs = (
    RouteAttrs
    | RowsAttrs
    | TransferAttrs
    | CollectiveAttrs
    | GemmAttrs
    | ExpertGemmAttrs
    | SlotAttrs
    | ActAttrs
    | CallAttrs
    | NoAttrs
)
