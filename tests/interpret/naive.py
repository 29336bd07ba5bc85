"""Mixture-of-Experts layers token by token, as one would explain them: no sorting of rows, plain Python numbers."""

from __future__ import annotations

import math

Vector = list[float]
Matrix = list[Vector]


def matvec(weight: Matrix, x: Vector) -> Vector:
    return [sum(w * v for w, v in zip(row, x, strict=True)) for row in weight]


def plus(a: Vector, b: Vector) -> Vector:
    return [p + q for p, q in zip(a, b, strict=True)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: float) -> float:
    return x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def softcap(x: float, cap: float) -> float:
    return cap * math.tanh(x / cap) if cap else x


def softmax(xs: Vector) -> Vector:
    powers = [math.exp(x - max(xs)) for x in xs]
    return [p / sum(powers) for p in powers]


def best(scores: dict[int, float], n: int) -> list[int]:
    return sorted(scores, key=lambda i: -scores[i])[:n]


def route(
    logits: Vector,
    *,
    top_k: int,
    score: str,
    choose: str,
    choice_bias: Vector | None,
    groups: int,
    top_groups: int,
    group_by: str,
    renorm: bool,
    scale: float,
) -> tuple[list[int], Vector]:
    """The experts of one token, best first, and their weights."""
    experts = len(logits)

    def scores(values: Vector) -> Vector:
        return softmax(values) if score == "softmax" else [sigmoid(v) for v in values]

    plain = scores(logits) if choose == "by_score" else logits
    choice = plus(plain, choice_bias) if choice_bias else plain
    size = experts // groups
    group_scores = {}
    for g in range(groups):
        members = sorted(choice[g * size : (g + 1) * size], reverse=True)
        group_scores[g] = members[0] if group_by == "max" else members[0] + members[1]
    kept = best(group_scores, top_groups)
    chosen = best({e: choice[e] for e in range(experts) if e // size in kept}, top_k)
    weights = [plain[e] for e in chosen]
    if choose == "by_logit":
        weights = scores(weights)
    if renorm:
        weights = [w / sum(weights) for w in weights]
    return chosen, [w * scale for w in weights]


def activation(
    fn: str,
    x: Vector,
    limit: float = 0.0,
    alpha: float = 1.0,
    offset: float = 0.0,
    interleaved: bool = False,
    gate_softcap: float = 0.0,
    up_softcap: float = 0.0,
) -> Vector:
    if fn in ("swiglu", "geglu", "geglu_tanh"):
        half = len(x) // 2
        pairs = [(x[2 * i], x[2 * i + 1]) if interleaved else (x[i], x[half + i]) for i in range(half)]
        out = []
        for gate, up in pairs:
            if limit > 0:
                gate, up = min(gate, limit), max(-limit, min(up, limit))
            if fn == "swiglu":
                gate, up = softcap(gate, gate_softcap) * sigmoid(alpha * gate), softcap(up, up_softcap)
            else:
                gate = gelu(gate) if fn == "geglu" else gelu_tanh(gate)
            out.append(gate * (up + offset))
        return out
    if limit > 0:
        x = [max(-limit, min(v, limit)) for v in x]
    function = {
        "relu": lambda v: max(v, 0.0),
        "relu2": lambda v: max(v, 0.0) ** 2,
        "silu": lambda v: v * sigmoid(v),
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "sigmoid": sigmoid,
    }[fn]
    return [function(v) for v in x]
