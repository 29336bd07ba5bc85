"""Shared branches: what is added to the experts' result and reads the same tokens, found by dataflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from epsc.grammar.trace.experts import activations
from epsc.grammar.trace.oracle import close, mlp
from epsc.grammar.trace.weights import Piece, Weight
from epsc.ir.attrs import ActAttrs


@dataclass(frozen=True)
class Shared:
    """An MLP on every token, perhaps times a sigmoid gate; or with no weights the token itself."""

    width: int = 0
    act: ActAttrs | None = None
    up: Weight | None = None
    down: Weight | None = None
    up_bias: Weight | None = None
    down_bias: Weight | None = None
    gate: Weight | None = None

    @property
    def weights(self) -> tuple[Weight, ...]:
        return tuple(w for w in (self.up, self.up_bias, self.down, self.down_bias, self.gate) if w)


def identify(
    samples: list[tuple[Tensor, Tensor]], tensors: Mapping[str, Tensor], numbers: set[float], name: str
) -> Shared | None:
    """The branch that gives the second of each pair for the first; `name` is what the program calls it."""
    if all(x.shape == y.shape and torch.equal(x, y) for x, y in samples):
        return Shared()
    hidden = samples[0][0].shape[1]
    gates: list[str | None] = [None, *(n for n, t in tensors.items() if t.numel() == hidden and t.ndim == 2)]
    acts = activations(numbers)
    get = tensors.__getitem__
    for gate in gates:
        for up, down, up_bias, down_bias in _candidates({n: t for n, t in tensors.items() if n != gate}, hidden):
            gated = sum(piece.made[0] for piece in up) == 2 * down.made[1]
            matrix = torch.cat([piece.one(get, None) for piece in up])
            bias = torch.cat([piece.one(get, None) for piece in up_bias]) if up_bias else None
            last, end = down.one(get, None), down_bias.one(get, None) if down_bias else None
            for act in acts:
                if act.fn.gated is not gated:
                    continue
                made = ((mlp(x, matrix, act, last, (bias, end)), x, y) for x, y in samples)
                if gate:
                    by = get(gate).reshape(1, hidden)
                    made = ((m * torch.sigmoid(x @ by.T), x, y) for m, x, y in made)
                if all(close(m, y) for m, _, y in made):
                    # The weights of an `mlp` have dots in their names; those of gemms are words of their own.
                    dot = "." if act == ActAttrs(act.fn) else "_"
                    first = f"{name}{dot}{'gate_up' if gated else 'up'}"
                    return Shared(
                        down.made[1],
                        act,
                        Weight(first, up),
                        Weight(f"{name}{dot}down", (down,)),
                        Weight(f"{first}.bias", up_bias) if up_bias else None,
                        Weight(f"{name}{dot}down.bias", (down_bias,)) if down_bias else None,
                        Weight(f"{name}_gate", (Piece((gate,), (1, hidden)),)) if gate else None,
                    )
    return None


Candidate = tuple[tuple[Piece, ...], Piece, tuple[Piece, ...], Piece | None]


def _candidates(tensors: Mapping[str, Tensor], hidden: int) -> Iterator[Candidate]:
    matrices = [name for name, t in tensors.items() if t.ndim == 2]
    vectors = [name for name, t in tensors.items() if t.ndim == 1]
    if len(matrices) not in (2, 3):
        return
    for *ups, down in permutations(matrices):
        for turned in (False, True):
            up = tuple(Piece((n,), tuple(tensors[n].shape), turned) for n in ups)
            last = Piece((down,), tuple(tensors[down].shape), turned)
            middle = sum(piece.made[0] for piece in up)
            if last.made[0] != hidden or {piece.made[1] for piece in up} != {hidden}:
                continue
            if len({piece.made for piece in up}) > 1 or middle not in (last.made[1], 2 * last.made[1]):
                continue
            if not vectors:
                yield up, last, (), None
            for *first, end in permutations(vectors, len(up) + 1) if vectors else ():
                if tensors[end].shape == (hidden,) and all(
                    tensors[b].shape == (piece.made[0],) for b, piece in zip(first, up, strict=True)
                ):
                    biases = tuple(Piece((b,), tuple(tensors[b].shape)) for b in first)
                    yield up, last, biases, Piece((end,), (hidden,))
