"""Running: emitted programs as modules, one for all layers that have the same plan."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from epsc.api.refuse import refusal
from epsc.codegen import Program

_folder: tempfile.TemporaryDirectory[str] | None = None
_modules: dict[str, ModuleType] = {}
_runners: dict[tuple[str, int, str, torch.dtype], Runner] = {}


@dataclass
class Runner:
    """An instance of an emitted layer: lanes, communicators and layouts, which layers of one plan share.

    Its weights are those of the layer that runs.
    """

    layer: Any
    table: dict[str, str]
    """Attribute of each weight, by its name."""
    group: dist.ProcessGroup | None

    @property
    def several(self) -> bool:
        """Whether the layer has several plans, by load."""
        return hasattr(self.layer, "plans")

    @property
    def taken(self) -> Any:
        """What ran last: the layer, or one of its plans."""
        return self.layer.plan if self.several else self.layer


def load_program(program: Program) -> ModuleType:
    """The program as a Python module; its text is in a file, so that tracebacks show it."""
    global _folder
    if program.text not in _modules:
        _folder = _folder or tempfile.TemporaryDirectory(prefix="epsc-")
        name = f"{program.name}_{os.getpid()}_{len(_modules)}"  # forks share the folder
        path = Path(_folder.name) / f"{name}.py"
        path.write_text(program.text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        _modules[program.text] = module
    return _modules[program.text]


def runner(
    program: Program,
    group: dist.ProcessGroup | None,
    device: torch.device,
    dtype: torch.dtype,
    timeout: timedelta | None = None,
) -> Runner:
    """The runner of a program on a group: the same one for all that ask. On all its ranks at the same time."""
    key = program.text, id(group), str(device), dtype
    if key not in _runners:
        module = load_program(program)
        (kind,) = [v for v in vars(module).values() if _is_layer(v, module)]
        layer = kind(group, device=device, dtype=dtype, timeout=timeout)
        table = {name: weight.attribute for name, weight in module.WEIGHTS.items()}
        _runners[key] = Runner(layer, table, group)
    return _runners[key]


def _is_layer(value: object, module: ModuleType) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__


class Layer(nn.Module):
    """A compiled layer with weights of its own."""

    def __init__(self, found: Runner, weights: dict[str, Tensor], copies: int = 1) -> None:
        super().__init__()
        self.found = (found,)  # in a tuple: its parameters are not parts of this module
        self.copies = copies
        """Tokens of the layer for each of the block."""
        self.most: int | None = None
        """Tokens of the block on the rank that has most, where that is known: plans by load are chosen by it."""
        for name, attribute in found.table.items():
            self.register_parameter(attribute, nn.Parameter(weights[name], requires_grad=False))

    @property
    def runner(self) -> Runner:
        return self.found[0]

    def forward(self, x: Tensor, ids: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        runner = self.runner
        layer = runner.layer
        if torch.is_grad_enabled() and x.requires_grad:
            raise refusal(
                "gradients",
                f"{type(layer).__name__} was compiled for inference and has no gradients",
                help="call it under `torch.no_grad()` or `torch.inference_mode()`",
            )
        for attribute, parameter in self._parameters.items():
            layer._parameters[attribute] = parameter
        given = [x.to(layer.dtype).contiguous()]
        if ids is not None and weights is not None:
            given += [ids.to(torch.int64).contiguous(), weights.to(torch.float32).contiguous()]
        # The plan says in which dtype each op runs. What the layer keeps from pass to pass is used in either mode.
        with torch.autocast(x.device.type, enabled=False), torch.inference_mode(False), torch.no_grad():
            most = None if self.most is None else self.most * self.copies
            made: Tensor = layer(*given, **({"most": most} if runner.several else {}))
        return made.to(x.dtype)
