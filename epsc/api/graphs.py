"""CUDA graphs of modules that epsc compiled, alone or inside a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from epsc.api.refuse import refusal
from epsc.api.running import Layer, Runner


def capture(module: nn.Module, *given: Any, **more: Any) -> Callable[..., Any]:
    """The forward pass of a module with compiled blocks as a CUDA graph, for inputs of these shapes.

    What comes back copies its inputs to where the graph reads them and returns where it writes, which the next call
    overwrites; `more` stays as it is. Where rows go is decided on the device, so it holds for every routing. All ranks
    call this, and then the function, as often as each other. Refused where a plan reads counts on the host.
    """
    runners = [each.runner for each in module.modules() if isinstance(each, Layer)]
    layers = [each.layer for each in runners]
    check_capture(module, layers, given)
    kept = [each.clone() if isinstance(each, Tensor) else each for each in given]
    with torch.no_grad():
        for _ in range(2):  # the first loads kernels, and leaves waiting to the host
            module(*kept, **more)
        _settle(layers)
        plans = [each.taken for each in runners]
        check_plans(module, plans)
        graph = torch.cuda.CUDAGraph()
        with _kept(runners), torch.cuda.graph(graph):
            made = module(*kept, **more)

    def replay(*fresh: Any) -> Any:
        for plan in plans:
            plan.symmetric.check()
        for own, value in zip(kept, fresh, strict=True):
            if isinstance(own, Tensor):
                own.copy_(value)
        graph.replay()
        return made

    return replay


@contextmanager
def _kept(runners: Iterable[Runner]) -> Iterator[None]:
    """Layers of several plans take those that they took last: in a graph ranks cannot ask each other."""
    several = [each.layer for each in runners if each.several]
    before = [layer.most for layer in several]
    for layer in several:
        layer.most = layer.plan.most
    try:
        yield
    finally:
        for layer, most in zip(several, before, strict=True):
            layer.most = most


def check_plans(module: nn.Module, plans: Iterable[Any]) -> None:
    """Raises EpsError when one of the plans that were taken for these inputs cannot be in a graph."""
    for plan in plans:
        if plan.symmetric is None:
            raise refusal(
                "no-graph",
                f"the plan {plan.name} of {type(module).__name__}, which these inputs take, reads counts on the host in"
                " the middle of a pass: no CUDA graph can hold that",
                module,
                "capture another load, or let the rows of that plan travel one-sided",
            )


def check_capture(module: nn.Module, layers: Iterable[Any], given: tuple[Any, ...]) -> None:
    """Raises EpsError when no graph of the module can be had."""
    name = type(module).__name__
    found = list({id(layer): layer for layer in layers}.values())
    if not found:
        raise refusal("not-compiled", f"nothing in {name} is compiled by epsc", module, "`epsc.compile` it first")
    if not all(hasattr(layer, "capture") for layer in found):
        raise refusal(
            "no-graph",
            f"{name} has a plan that reads counts on the host in the middle of a pass: no CUDA graph can hold that",
            module,
            "let all rows travel one-sided: schedule=`use copy for sent  use put for back  local_reduce back`",
        )
    devices = {each.device.type for each in given if isinstance(each, Tensor)}
    if devices != {"cuda"}:
        where = ", ".join(sorted(devices)) or "no tensors"
        raise refusal("no-graph", f"a CUDA graph of {name} needs inputs on CUDA, not {where}", module)


def _settle(layers: list[Any]) -> None:
    """Wait for the device. Raises what went wrong there."""
    for layer in layers:
        layer.status()
