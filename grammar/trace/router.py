"""Routers: what `route` can say, found by what the captured router decides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.fx import Node

from epsc.grammar.trace.oracle import close, route
from epsc.grammar.trace.weights import Piece, Weight
from epsc.ir.attrs import Choose, GroupBy, RouteAttrs, Score

Sample = tuple[Tensor, Tensor, Tensor]
"""Tokens, the experts that were chosen for them, and their weights."""


@dataclass(frozen=True)
class Router:
    """A router as `route` says it."""

    attrs: RouteAttrs
    weights: tuple[Weight, ...]
    """Names are those that a route bound to `r` gives them."""


def numbers_in(nodes: list[Node]) -> set[float]:
    """The numbers that stand in captured code."""
    found: set[float] = set()

    def look(value: object) -> None:
        if isinstance(value, list | tuple):
            for each in value:
                look(each)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found.add(float(value))

    for node in nodes:
        for value in (*node.args, *node.kwargs.values()):
            look(value)
    return found


def identify(samples: list[Sample], tensors: Mapping[str, Tensor], experts: int, numbers: set[float]) -> Router | None:
    """The router that decides as in all samples, or None. `tensors` are what the captured router reads."""
    top_k, hidden = samples[0][1].shape[1], samples[0][0].shape[1]
    if any(len(ids.sort(-1).values.diff(dim=-1).flatten().eq(0).nonzero()) for _, ids, _ in samples):
        return None  # a token with one expert twice is nothing that a top k gives
    for weight, turned in _matrices(tensors, experts, hidden):
        vectors = [name for name, t in tensors.items() if t.numel() == experts and name != weight]
        at = Piece((weight,), tuple(tensors[weight].shape), turned)
        for attrs, bias, choice_bias in _choices(experts, top_k, vectors, numbers):
            named = {"r.weight": at} | {
                f"r.{what}": Piece((name,), (experts,))
                for what, name in (("bias", bias), ("choice_bias", choice_bias))
                if name
            }
            pieces = {name: piece.one(tensors.__getitem__, None) for name, piece in named.items()}
            decided = _decided(samples, attrs, pieces)
            if decided and (made := _weighed(decided, attrs, numbers)):
                return Router(made, tuple(Weight(name, (piece,)) for name, piece in named.items()))
    return None


def _matrices(tensors: Mapping[str, Tensor], experts: int, hidden: int) -> Iterator[tuple[str, bool]]:
    for name, tensor in tensors.items():
        if tuple(tensor.shape) == (experts, hidden):
            yield name, False
        if tuple(tensor.shape) == (hidden, experts):
            yield name, True


def _choices(
    experts: int, top_k: int, vectors: list[str], numbers: set[float]
) -> Iterator[tuple[RouteAttrs, str, str]]:
    """Ways to choose, the simple ones first; the biases that they use."""
    ways: list[tuple[int, int, GroupBy]] = [(1, 1, GroupBy.MAX)]
    whole = sorted(int(n) for n in numbers if n == int(n) and n >= 1)
    ways += [
        (groups, best, by)
        for groups in whole
        if 1 < groups < experts and experts % groups == 0
        for best in whole
        if best < groups and experts // groups * best >= top_k
        for by in (GroupBy.MAX, *([GroupBy.TOP2] if experts // groups >= 2 else []))
    ]
    for (groups, best, by), score, choose, renorm, bias, choice_bias in product(
        ways, Score, Choose, (False, True), ("", *vectors), ("", *vectors)
    ):
        if (bias and bias == choice_bias) or (renorm and choose is Choose.BY_LOGIT and score is Score.SOFTMAX):
            continue
        yield (
            RouteAttrs(
                experts,
                top_k,
                score,
                choose,
                choice_bias=bool(choice_bias),
                bias=bool(bias),
                groups=groups,
                top_groups=best,
                group_by=by,
                renorm=renorm,
            ),
            bias,
            choice_bias,
        )


def _decided(
    samples: list[Sample], attrs: RouteAttrs, pieces: Mapping[str, Tensor]
) -> list[tuple[Tensor, Tensor]] | None:
    """The weights of each sample, as captured and by `attrs`, in one order; None when other experts are chosen."""
    found = []
    for x, ids, weights in samples:
        chosen, made = route(attrs, x, pieces["r.weight"], pieces.get("r.bias"), pieces.get("r.choice_bias"))
        order, mine = ids.argsort(-1), chosen.argsort(-1)
        if not torch.equal(ids.gather(1, order), chosen.gather(1, mine)):
            return None
        found.append((weights.gather(1, order).float(), made.gather(1, mine)))
    return found


def _weighed(decided: list[tuple[Tensor, Tensor]], attrs: RouteAttrs, numbers: set[float]) -> RouteAttrs | None:
    """The attributes with the scale that makes the weights equal, if one does: a number of the code, where one fits."""
    wanted, made = (torch.cat([pair[i].flatten() for pair in decided]).double() for i in (0, 1))
    if not bool((made.abs() > 0).any()):
        return None
    scale = float((wanted * made).sum() / made.square().sum())
    near = min((*numbers, 1.0), key=lambda number: abs(number - scale))
    scale = near if abs(near - scale) < 1e-4 * abs(scale) else float(f"{scale:.6g}")
    if scale <= 0 or not all(close(made * scale, wanted) for wanted, made in decided):
        return None
    return replace(attrs, scale=scale)
