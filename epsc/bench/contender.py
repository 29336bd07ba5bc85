"""What takes part: an emitted program or a layer by hand, as it is or as a CUDA graph; and the check of its output."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from epsc.bench.reference import error


@dataclass
class Contender:
    name: str
    layer: Any
    """An nn.Module; an emitted one has `run`, and may have `capture` and `status`."""
    by_hand: bool = False
    graph: bool = False
    """Run as CUDA graphs that the layer captures, one for each number of tokens."""
    transfers: frozenset[str] = frozenset()
    """Names of the steps that move rows between ranks, of an emitted program."""
    captured: dict[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def prepare(self, inputs: Sequence[Tensor]) -> None:
        """Capture what these inputs will need. All ranks do so at the same time."""
        if self.graph:
            for x in inputs:
                if len(x) not in self.captured:
                    self.captured[len(x)] = self.layer.capture(x)

    def __call__(self, x: Tensor) -> Tensor:
        made: Tensor = self.captured[len(x)](x) if self.graph else self.layer(x)
        return made

    def poison(self, settle: Callable[[], None]) -> None:
        """Fill with NaN what the layer keeps for rows of other ranks, all of which do so while none runs."""
        if hasattr(self.layer, "symmetric"):
            settle()
            self.layer.symmetric.poison()
            settle()

    def status(self) -> None:
        """Raise what happened on the device, for layers that can tell."""
        if hasattr(self.layer, "status"):
            self.layer.status()


def load_module(path: Path) -> ModuleType:
    """Import an emitted program."""
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for made in vars(module).values():
        # Kernels that programs have in common are compiled once: Triton tells them apart by the line they start in.
        if hasattr(made, "starting_line_number"):
            made.starting_line_number = 1
    return module


def load_program(path: Path, weights: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Import an emitted program, make its layer and fill it."""
    module = load_module(path)
    classes: list[Any] = [
        made
        for _, made in inspect.getmembers(module, inspect.isclass)
        if issubclass(made, nn.Module) and made.__module__ == module.__name__ and hasattr(made, "load")
    ]
    if len(classes) != 1:
        raise RuntimeError(f"{path} has {len(classes)} layers with `load`, not one")
    layer = classes[0](device=device, dtype=dtype)
    layer.load(weights)
    for name, weight in module.WEIGHTS.items():
        # Programs share their weights: copies for each of them would fill the device.
        own, given = getattr(layer, weight.attribute), weights.get(name)
        if given is not None and (own.shape, own.dtype, own.device) == (given.shape, given.dtype, given.device):
            own.data = given
    made: nn.Module = layer.eval()
    return made


class Poison(TorchDispatchMode):
    """Every tensor of numbers that is made without a value is full of NaN, whatever stream it is made on."""

    FRESH = (
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_strided.default,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.new_empty.default,
        torch.ops.aten.new_empty_strided.default,
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.fill_(torch.nan) if func in self.FRESH and made.is_floating_point() else made


def check(contender: Contender, x: Tensor, other: Tensor, wanted: Tensor, clear: Tensor) -> float:
    """The relative error of a forward on the tokens that are clear, every new tensor full of NaN before.

    Raises where a contender does more than it should: write into its input or, unless it is a graph, whose memory is
    its own, into what it returned before.
    """
    before = x.clone()
    with Poison():  # type: ignore[no-untyped-call]
        y = contender(x)
        kept = y.clone()
        contender(other)
        if not contender.graph and not torch.equal(y.nan_to_num(), kept.nan_to_num()):
            raise RuntimeError("the next forward writes into what this one returned")
        again = contender(x)  # memory that a layer keeps is not fresh any more
    contender.status()
    if not torch.equal(x, before):
        raise RuntimeError("a forward writes into its input")
    return max(error(kept[clear], wanted[clear]), error(again[clear], wanted[clear]))
