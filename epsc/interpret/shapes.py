"""Whether what was given and what was made have the shapes that the graph's types say."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from epsc.ir.attrs import CallAttrs
from epsc.ir.dims import Dim, DType
from epsc.ir.dims import Tensor as Type
from epsc.ir.errors import Diagnostic, EpsError, Faults, did_you_mean
from epsc.ir.graph import Graph, Node


class Sizes:
    """What symbols such as `tokens` stand for in this run: the first tensor that has one decides, others must agree."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[int, str]] = {}

    def fit(self, what: str, type: Type, shape: tuple[int, ...]) -> str | None:
        """Nothing if `shape` is one of `type`, else a sentence that says how it is not. `what` is whose shape."""
        if len(shape) == len(type.shape):
            for dim, size in zip(type.shape, shape, strict=True):
                if dim.symbol and size % dim.scale == 0:
                    self.known.setdefault(_symbol(dim), (size // dim.scale, what))
            if all(self._size(dim) == size for dim, size in zip(type.shape, shape, strict=True)):
                return None
        filled = [dim if (n := self._size(dim)) is None else n for dim in type.shape]
        because = [
            f"{name} is {size} in {whose}"
            for name, (size, whose) in self.known.items()
            if whose != what and any(_symbol(dim) == name for dim in type.shape)
        ]
        why = f" ({', '.join([str(type), *because])})" if any(dim.symbol for dim in type.shape) else ""
        return f"{what} should have shape [{', '.join(map(str, filled))}]{why}, but has {list(shape)}"

    def _size(self, dim: Dim) -> int | None:
        if dim.known:
            return dim.scale
        found = self.known.get(_symbol(dim))
        return None if found is None else dim.scale * found[0]


def _symbol(dim: Dim) -> str:
    return str(Dim(1, dim.symbol, dim.cuts))


def check_given(
    graph: Graph,
    inputs: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    modules: Mapping[str, Callable[..., object]],
    sizes: Sizes,
) -> None:
    faults = Faults()
    wanted = [("input", name, graph.types[name], inputs) for name in graph.inputs]
    wanted += [("weight", param.name, param.type, weights) for param in graph.params]
    for what, name, type, given in wanted:
        if name not in given:
            message = f"{what} `{name}` ({type}) of `{graph.name}` is missing"
            faults.add(f"missing-{what}", message, help=did_you_mean(name, given))
        elif given[name].is_floating_point() is (type.dtype in (DType.INT32, DType.INT64)):
            faults.add("dtype-mismatch", f"{what} `{name}` should be {type}, but is {given[name].dtype}")
        elif fault := sizes.fit(f"{what} `{name}`", type, tuple(given[name].shape)):
            faults.add("shape-mismatch", fault)
    for node in graph.nodes:
        if isinstance(node.attrs, CallAttrs) and node.attrs.module not in modules:
            message = f"module `{node.attrs.module}` that op `{node.name}` calls is missing"
            faults.add("missing-module", message, node.span, help=did_you_mean(node.attrs.module, modules))
    faults.raise_if_any()


def checked(graph: Graph, node: Node, name: str, value: object, sizes: Sizes) -> Tensor:
    """Values that numbers flow through must be as typed; counts and indices may be laid out for several ranks."""
    what = f"`{name}`, made by op `{node.name}` ({node.kind}),"
    if not isinstance(value, Tensor):
        message = f"{what} should be a tensor, but is a {type(value).__name__}"
        raise EpsError(Diagnostic("not-a-tensor", message, node.span))
    if value.is_floating_point() and (fault := sizes.fit(what, graph.types[name], tuple(value.shape))):
        raise EpsError(Diagnostic("shape-mismatch", fault, node.span))
    return value
