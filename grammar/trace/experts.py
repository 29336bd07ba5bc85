"""Experts: two products and an activation for each, found by what the module's experts compute.

Spellings are many and the language says few things. So candidates are made from the shapes of the weights and the
numbers in the code, and one is taken only if it gives what the experts give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from epsc.grammar.trace.oracle import activation, close
from epsc.grammar.trace.seam import Experts
from epsc.grammar.trace.weights import Bank, Piece, Weight, banks
from epsc.ir.attrs import Act, ActAttrs

Rows = Callable[[Tensor], Tensor]

ROWS = 6
SCALES = (1.0, 12.0)
"""Of the tokens that are tried: the larger ones meet clamps."""


@dataclass(frozen=True)
class Weighing:
    """How the weights that experts are called with count."""

    on_input: bool = False
    """They multiply the tokens that go to an expert, not what it makes of them."""
    sigmoid: bool = False
    """They are logits."""

    def of(self, weights: Tensor) -> Tensor:
        return weights.float().sigmoid().to(weights.dtype) if self.sigmoid else weights

    @property
    def nothing(self) -> float:
        """The weight of a copy that counts nothing."""
        return -math.inf if self.sigmoid else 0.0


@dataclass(frozen=True)
class Ffn:
    """Experts as the language says them."""

    experts: int
    width: int
    """Of the middle."""
    act: ActAttrs
    up: Weight
    down: Weight
    up_bias: Weight | None = None
    down_bias: Weight | None = None
    transposed: bool = False
    """Weights lie as [in, out]."""
    identities: int = 0
    """So many experts behind these hand their tokens back."""
    weighing: Weighing = Weighing()
    post: str = ""
    """A module of the block that each row goes through behind its expert, before it is weighted."""

    @property
    def plain(self) -> bool:
        """Whether a layer of the language weights and sums as these experts do."""
        return not self.post and not self.weighing.on_input

    @property
    def every(self) -> int:
        """What a token chooses from."""
        return self.experts + self.identities

    @property
    def weights(self) -> tuple[Weight, ...]:
        return tuple(w for w in (self.up, self.up_bias, self.down, self.down_bias) if w)


def activations(numbers: set[float]) -> list[ActAttrs]:
    """What the language can say with the numbers of some code; the plain ones first."""
    limits = [0.0, *sorted(n for n in numbers if n > 0)]
    alphas = [1.0, *sorted(n for n in numbers if n > 0 and n != 1.0)]
    plain = [ActAttrs(fn) for fn in Act]
    gated = [
        ActAttrs(fn, limit, alpha, offset, interleaved)
        for interleaved in (False, True)
        for fn in Act
        if fn.gated
        for limit in limits
        for offset in (0.0, 1.0)
        for alpha in (alphas if fn is Act.SWIGLU else alphas[:1])
    ]
    gated += [ActAttrs(Act.SWIGLU, gate_softcap=gate, up_softcap=up) for gate in limits for up in limits]
    clamped = [ActAttrs(fn, limit) for fn in Act if not fn.gated for limit in limits]
    return list(dict.fromkeys([*plain, *gated, *clamped]))


def identify(
    experts: Experts,
    tensors: Mapping[str, Tensor],
    count: int,
    top_k: int,
    hidden: int,
    numbers: set[float],
    device: torch.device,
    posts: Mapping[str, Rows] = {},
) -> Ffn | None:
    """The form of `experts`, or None when it is none that the language has.

    `tensors` are the parameters that it may use, of which there are fp32 made-up ones; `posts` the modules that may
    stand behind an expert, as a norm does.
    """
    found = banks(((name, tuple(t.shape)) for name, t in tensors.items()), count)
    weighing, tried = _tried(experts, count, top_k, hidden, device)
    if weighing is None:
        return None
    get = tensors.__getitem__
    acts = activations(numbers)
    plain = len(Act)
    ends: list[tuple[str, Rows]] = [("", lambda rows: rows), *(posts.items() if weighing == Weighing() else ())]
    for some in (acts[:plain], acts[plain:]):
        for up, down, up_bias, down_bias, gated in _candidates(found, hidden):
            pairs = []
            for x, e, wanted in tried:
                up_of = torch.cat([piece.one(get, e) for piece in up])
                bias = torch.cat([piece.one(get, e) for piece in up_bias]) if up_bias else None
                pairs.append((e, F.linear(x, up_of, bias), wanted))
            for post, end in ends:
                if act := _form(pairs, down, down_bias, gated, some, get, end):
                    made = _written(count, up, down, up_bias, down_bias, act)
                    return replace(made, weighing=weighing, post=post)
    return None


Tried = list[tuple[Tensor, int, Tensor]]


def _tried(
    experts: Experts, count: int, top_k: int, hidden: int, device: torch.device
) -> tuple[Weighing | None, Tried]:
    """How weights count; and rows, an expert, and what it makes of them with a weight of one."""
    generator = torch.Generator(device).manual_seed(1)
    rest = torch.randn(count, hidden, generator=generator, device=device)

    def asked(x: Tensor, e: int, weight: float, weighing: Weighing) -> Tensor:
        """What an expert makes of rows with that weight, others having none. Behind these rows there is one for every
        expert, as when the block was traced."""
        first = torch.cat([torch.full((ROWS,), e, device=device), torch.arange(count, device=device)])
        ids = (first.unsqueeze(1) + torch.arange(top_k, device=device)) % count
        weights = torch.full((ROWS + count, top_k), weighing.nothing, device=device)
        weights[:ROWS, 0] = weight
        return experts(torch.cat([x, rest]), ids, weights)[:ROWS]

    tried: Tried = []
    weighing: Weighing | None = None
    for scale in SCALES:
        x = scale * torch.randn(ROWS, hidden, generator=generator, device=device)
        for e in {0, count // 2, count - 1}:
            weighing = weighing or _weighing(asked, x, e)
            if weighing is None:
                return None, []
            made, by = asked(x, e, 0.5, weighing), float(weighing.of(torch.tensor(0.5)))
            tried.append((by * x, e, made) if weighing.on_input else (x, e, made / by))
    return weighing, tried


def _weighing(asked: Callable[[Tensor, int, float, Weighing], Tensor], x: Tensor, e: int) -> Weighing | None:
    """How weights count, by what an expert makes with a whole one and with half of one."""
    for way in (Weighing(), Weighing(on_input=True), Weighing(True, True), Weighing(sigmoid=True)):
        half, whole = (float(way.of(torch.tensor(weight))) for weight in (0.5, 1.0))
        made = asked(x, e, 0.5, way)
        if not bool(torch.isfinite(made).all()):
            continue
        same = asked(half / whole * x, e, 1.0, way) if way.on_input else half / whole * asked(x, e, 1.0, way)
        if close(made, same):
            return way
    return None


def _form(
    pairs: list[tuple[int, Tensor, Tensor]],
    down: Piece,
    down_bias: Piece | None,
    gated: bool,
    acts: list[ActAttrs],
    get: Callable[[str], Tensor],
    end: Rows,
) -> ActAttrs | None:
    def made(attrs: ActAttrs, e: int, up: Tensor) -> Tensor:
        return end(F.linear(activation(attrs, up), down.one(get, e), down_bias.one(get, e) if down_bias else None))

    for attrs in acts:
        if attrs.fn.gated is gated and all(close(made(attrs, e, up), wanted) for e, up, wanted in pairs):
            return attrs
    return None


Candidate = tuple[tuple[Piece, ...], Piece, tuple[Piece, ...], Piece | None, bool]


def _candidates(found: list[Bank], hidden: int) -> Iterator[Candidate]:
    """Up, down, their biases, and whether the middle is gated: everything that the shapes allow."""
    matrices = [bank for bank in found if len(bank.shape) == 2 and hidden in bank.shape]
    vectors = [bank for bank in found if len(bank.shape) == 1]
    for count in (2, 3):
        for chosen in permutations(matrices, count):
            *ups, down = chosen
            if len({bank.names for bank in chosen}) < count or len({up.shape for up in ups}) > 1:
                continue
            for up_turned, down_turned in _turns(ups[0], down, hidden):
                up = tuple(Piece(bank.names, bank.shape, up_turned) for bank in ups)
                last = Piece(down.names, down.shape, down_turned)
                middle, width = sum(piece.made[0] for piece in up), last.made[1]
                if middle not in (width, 2 * width) or (count == 3 and middle != 2 * width):
                    continue
                for up_bias, down_bias in _biases(vectors, up, hidden):
                    yield up, last, up_bias, down_bias, middle == 2 * width


def _turns(up: Bank, down: Bank, hidden: int) -> Iterator[tuple[bool, bool]]:
    for up_turned in (False, True):
        for down_turned in (False, True):
            in_of_up = up.shape[0] if up_turned else up.shape[1]
            out_of_down = down.shape[1] if down_turned else down.shape[0]
            if in_of_up == out_of_down == hidden:
                yield up_turned, down_turned


def _biases(
    vectors: list[Bank], up: tuple[Piece, ...], hidden: int
) -> Iterator[tuple[tuple[Piece, ...], Piece | None]]:
    """All biases there are, or none."""
    if vectors:
        for chosen in permutations(vectors, len(up) + 1):
            *ups, down = chosen
            if down.shape == (hidden,) and all(b.shape == (p.made[0],) for b, p in zip(ups, up, strict=True)):
                yield tuple(Piece(b.names, b.shape) for b in ups), Piece(down.names, down.shape)
    yield (), None


def _written(
    count: int,
    up: tuple[Piece, ...],
    down: Piece,
    up_bias: tuple[Piece, ...],
    down_bias: Piece | None,
    act: ActAttrs,
) -> Ffn:
    """With weights as the program is to hold them: what lies as [in, out] in one tensor stays so."""
    transposed = len(up) == 1 and up[0].turned and down.turned and not up[0].listed and not down.listed
    if transposed:
        up, down = (Piece(up[0].names, up[0].shape),), Piece(down.names, down.shape)
    width = down.made[0] if transposed else down.made[1]
    name = "gate_up" if act.fn.gated else "up"
    return Ffn(
        count,
        width,
        act,
        Weight(name, up, count),
        Weight("down", (down,), count),
        Weight(f"{name}.bias", up_bias, count) if up_bias else None,
        Weight("down.bias", (down_bias,), count) if down_bias else None,
        transposed,
    )
