"""A torch.fx tracer that carries an example: every proxy knows the value that its op gave.

So shapes can be unpacked, `if` and `for` over data take the way that the example takes (every expert is hit, so no
`skip if empty` is taken and every expert is visited), and numbers read from tensors are there. What writes in place
makes a new value under the old name. A submodule that cannot be traced stays a call.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node, Proxy, Tracer
from torch.fx.node import map_arg

_KNOWN = frozenset({"dtype", "device", "ndim", "is_cuda", "layout", "requires_grad", "is_meta"})
_FACTORIES = ("zeros", "ones", "empty", "full", "arange", "rand", "randn")


class Example(Proxy):
    """A proxy with the value that its op gave on the example."""

    @property
    def value(self) -> Any:
        return self.node.meta["example"]

    def __getattr__(self, name: str) -> Any:
        if name in _KNOWN:
            return getattr(self.value, name)
        if name == "shape":
            return self.tracer.create_proxy("call_function", getattr, (self, "shape"), {})
        if name.endswith("_") and not name.startswith("_") and isinstance(self.value, Tensor):
            return _InPlace(self, name)
        return super().__getattr__(name)

    def dim(self) -> int:
        return int(self.value.dim())

    def __len__(self) -> int:
        return len(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __index__(self) -> int:
        return operator.index(self.value)

    def __hash__(self) -> int:
        return id(self)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.node = self.tracer.create_proxy("call_function", put, (self, index, value), {}).node


class _InPlace:
    """A method that writes in place: the proxy becomes its result."""

    def __init__(self, proxy: Example, name: str) -> None:
        self.proxy, self.name = proxy, name

    def __call__(self, *args: Any, **kwargs: Any) -> Example:
        made = self.proxy.tracer.create_proxy("call_function", changed, (self.name, self.proxy, *args), kwargs)
        self.proxy.node = made.node
        return self.proxy


def put(into: Tensor, index: Any, value: Any) -> Tensor:
    """`into` with `into[index] = value` done, as a tensor of its own."""
    made = into.clone()
    made[index] = value
    return made


def changed(method: str, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The result of a method that writes in place, as a tensor of its own."""
    made = tensor.clone()
    getattr(made, method)(*args, **kwargs)
    return made


class ExampleTracer(Tracer):
    """Traces `forward` while it runs on `args`."""

    def __init__(self, leaves: frozenset[str]) -> None:
        super().__init__()
        self.leaves = leaves
        self.args: list[Any] = []
        self.running = 0
        """How many ops are being run on the example: what modules do in them is not traced."""

    def proxy(self, node: Node) -> Proxy:
        return Example(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """What the op gives. One that writes into its first argument, or into `out`, works on a copy, and the argument
        becomes its result."""
        into = kwargs.get("out") if kind == "call_function" else None
        if isinstance(into, Example):
            kwargs = {name: value for name, value in kwargs.items() if name != "out"}
        elif args and isinstance(args[0], Example) and self._writes(kind, target, kwargs):
            into = args[0]
            args = (super().create_proxy("call_method", "clone", (into,), {}), *args[1:])
        made = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if not isinstance(into, Example):
            return made
        into.node = made.node
        return into

    def _writes(self, kind: str, target: Any, kwargs: Any) -> bool:
        """Whether an op writes into its first argument: `relu_`, `relu(.., inplace=True)`, `nn.ReLU(inplace=True)`."""
        if kind == "call_module":
            return getattr(self.root.get_submodule(str(target)), "inplace", False) is True
        name = getattr(target, "__name__", "") if kind == "call_function" else ""
        known = str(getattr(target, "__module__", "") or "torch").startswith("torch")
        return kwargs.get("inplace") is True or (known and name.endswith("_") and not name.endswith("__"))

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        if kind != "output":
            self.running += 1
            try:
                node.meta["example"] = self.run(node)
            finally:
                self.running -= 1
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def run(self, node: Node) -> Any:
        """The value of an op on the example."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda each: each.meta["example"])
        if node.op == "placeholder":
            return self.args.pop(0) if self.args else args[0]
        if node.op == "get_attr":
            value: Any = self.root
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def to_bool(self, obj: Proxy) -> bool:
        return bool(obj.node.meta["example"])

    def iter(self, obj: Proxy) -> Iterator[Any]:
        count = len(obj.node.meta["example"])
        return iter([self.create_proxy("call_function", operator.getitem, (obj, i), {}) for i in range(count)])

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.leaves or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        before = set(self.graph.nodes)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            # Whatever the user's code does that a proxy cannot: then it runs as it is.
            for node in reversed(list(self.graph.nodes)):
                if node not in before:
                    self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def traced(module: nn.Module, args: tuple[Any, ...], leaves: frozenset[str] = frozenset()) -> GraphModule:
    """The module as a graph; values on the example stand in `meta["example"]` of its nodes."""
    tracer = ExampleTracer(leaves)
    tracer.args = list(args)
    tracer.record_stack_traces = True
    with torch.no_grad(), _patched(tracer):
        graph = tracer.trace(module, _constants(module, args) or None)
    return GraphModule(tracer.root, graph)


def _constants(module: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments that are no tensors, those that are left out among them: code asks what they are."""
    signature = inspect.signature(module.forward)
    given = signature.bind(*args)
    given.apply_defaults()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: value
        for name, value in given.arguments.items()
        if not isinstance(value, Tensor) and signature.parameters[name].kind not in several
    }


@contextmanager
def _patched(tracer: ExampleTracer) -> Iterator[None]:
    """While this lasts, what the traced code makes by torch.zeros and the like is traced, and so is `len`."""

    def factory(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if tracer.running:
                return function(*args, **kwargs)
            return tracer.create_proxy("call_function", function, args, kwargs)

        return call

    def length(value: Any) -> Any:
        if isinstance(value, Example) and isinstance(value.value, Tensor):
            return value.size(0)
        return plain_len(value)

    # Dynamo notes what `len` is when it is first loaded, which must not be while it is another.
    importlib.import_module("torch._dynamo")
    plain_len = builtins.len
    originals = {name: getattr(torch, name) for name in _FACTORIES}
    try:
        for name, function in originals.items():
            setattr(torch, name, factory(function))
        builtins.len = length
        yield
    finally:
        builtins.len = plain_len
        for name, function in originals.items():
            setattr(torch, name, function)
