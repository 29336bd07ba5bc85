"""CUDA graphs of modules that epsc compiled, alone or inside a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from epsc.api.refuse import refusal
from epsc.api.running import Layer


def capture(module: nn.Module, *given: Any, **more: Any) -> Callable[..., Any]:
    """The forward pass of a module with compiled blocks as a CUDA graph, for inputs of these shapes.

    What comes back copies its inputs to where the graph reads them and returns where it writes, which the next call
    overwrites; `more` stays as it is. Where rows go is decided on the device, so it holds for every routing. All ranks
    call this, and then the function, as often as each other. Refused where a plan reads counts on the host.
    """
    layers = [each.runner.layer for each in module.modules() if isinstance(each, Layer)]
    check_capture(module, layers, given)
    kept = [each.clone() if isinstance(each, Tensor) else each for each in given]
    with torch.no_grad():
        for _ in range(2):  # the first loads kernels, and leaves waiting to the host
            module(*kept, **more)
        _settle(layers)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = module(*kept, **more)

    def replay(*fresh: Any) -> Any:
        for layer in layers:
            layer.symmetric.check()
        for own, value in zip(kept, fresh, strict=True):
            if isinstance(own, Tensor):
                own.copy_(value)
        graph.replay()
        return made

    return replay


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
