"""What single ops of the language compute, by the interpreter: what a module's ops are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from epsc.interpret import interpret
from epsc.ir.attrs import ActAttrs, RouteAttrs
from epsc.ir.dims import TOKENS, Dim, DType
from epsc.ir.dims import Tensor as Type
from epsc.ir.graph import Graph, Node, Param


def activation(attrs: ActAttrs, x: Tensor) -> Tensor:
    """The activation of rows."""
    width = x.shape[-1]
    types = {
        "x": Type(DType.FP32, (TOKENS, Dim(width))),
        "y": Type(DType.FP32, (TOKENS, Dim(width // 2 if attrs.fn.gated else width))),
    }
    graph = Graph("one", ("x",), types, (), (Node("y", "activation", ("x",), ("y",), attrs),), ("y",))
    return interpret(graph, {"x": x}, {})[0]


def route(
    attrs: RouteAttrs, x: Tensor, weight: Tensor, bias: Tensor | None, choice_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The experts of each token, and their weights."""
    given = {"weight": weight, "bias": bias, "choice_bias": choice_bias}
    weights = {name: tensor for name, tensor in given.items() if tensor is not None}
    params = tuple(Param(n, Type(DType.FP32, tuple(map(Dim, w.shape)))) for n, w in weights.items())
    k = Dim(attrs.top_k)
    types = {
        "x": Type(DType.FP32, (TOKENS, Dim(x.shape[1]))),
        "r.experts": Type(DType.INT64, (TOKENS, k)),
        "r.weights": Type(DType.FP32, (TOKENS, k)),
    }
    node = Node("r", "route", ("x",), ("r.experts", "r.weights"), attrs, tuple(weights))
    graph = Graph("one", ("x",), types, params, (node,), ("r.experts", "r.weights"))
    experts, made = interpret(graph, {"x": x}, weights)
    return experts, made


def mlp(x: Tensor, up: Tensor, attrs: ActAttrs, down: Tensor, biases: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """Two products with an activation between them; weights are [out, in]."""
    return F.linear(activation(attrs, F.linear(x, up, biases[0])), down, biases[1])


def off(made: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest value."""
    if not wanted.numel():
        return 0.0
    scale = float(wanted.abs().max())
    error = float((made.double() - wanted.double()).abs().max())
    return error / scale if scale else error


def close(made: Tensor, wanted: Tensor, limit: float = 1e-5) -> bool:
    """Whether two fp32 results differ by rounding only."""
    return made.shape == wanted.shape and bool(torch.isfinite(made).all()) and off(made, wanted) <= limit
