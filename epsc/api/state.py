"""State: the tensors of a stand-in under the names that the module has for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from epsc.api.refuse import refusal
from epsc.api.running import Layer
from epsc.api.tracing import Traced
from epsc.grammar.trace.lift import LAYER
from epsc.grammar.trace.weights import Get, Weight

AROUND = "around"


@dataclass
class State:
    """Which experts this rank has, and how the module's tensors and the stand-in's are made of each other."""

    names: tuple[str, ...]
    """Of the module's state dict."""
    shapes: dict[str, tuple[int, ...]]
    weights: tuple[Weight, ...]
    rank: int
    ranks: int
    rest: dict[str, Tensor]
    """What no op of the block reads: it is in the module's state dict all the same."""
    behind: dict[str, Tensor] = field(default_factory=dict)
    """Of tensors that have more rows than there are experts the rest, where one rank has all."""

    @staticmethod
    def of(traced: Traced, rank: int, ranks: int) -> State:
        state = traced.module.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        used = {name for weight in traced.weights for name in weight.sources}
        rest = {name: tensor.detach() for name, tensor in state.items() if name not in used}
        return State(tuple(state), shapes, traced.weights, rank, ranks, rest)

    def first(self, weight: Weight) -> int:
        return self.rank * (weight.experts // self.ranks)

    def own(self, weight: Weight, get: Get) -> Tensor:
        """This rank's part of a weight, of tensors that hold all experts or its own."""
        return weight.read(get, self.first(weight), weight.experts // self.ranks)

    def reader(self, module: nn.Module, given: Mapping[str, Tensor] | str | Path | None) -> Get:
        """A function that gives a tensor of the module: its own, or that of a state dict or a file."""
        held = dict([*module.named_parameters(), *module.named_buffers()])
        tensors = held if given is None else opened(given, module)
        known = {weight_name for weight in self.weights for weight_name in weight.sources}

        def get(name: str) -> Tensor:
            if name not in tensors:
                raise refusal("no-weight", f"`{name}` of {type(module).__name__} is not among the weights", module)
            found = tensors[name]
            if not isinstance(found, Tensor):  # a slice of a file: read what is wanted only
                found = self._part(name, found) if name in known else found[...]
            return found.detach().to(held[name].dtype)

        return get

    def _part(self, name: str, piece: Any) -> Tensor:
        """Of a tensor that holds all experts, the part of this rank's."""
        weight = next(each for each in self.weights if name in each.sources)
        listed = any(each.listed for each in weight.pieces if name in each.names)
        if not weight.experts or listed or self.ranks == 1:
            whole: Tensor = piece[:]
            return whole
        (one,) = (each for each in weight.pieces if name in each.names)
        rows = weight.experts // self.ranks * (prod(one.shape) // prod(self.shapes[name][1:]))
        own: Tensor = piece[self.rank * rows : (self.rank + 1) * rows]
        return own

    def keep_behind(self, get: Get) -> None:
        """Remember what tensors hold behind the experts, for the state dict."""
        for weight in self.weights if self.ranks == 1 else ():
            for piece in weight.pieces if weight.experts else ():
                rows = weight.experts * (prod(piece.shape) // prod(self.shapes[piece.names[0]][1:]))
                if not piece.listed and self.shapes[piece.names[0]][0] > rows:
                    self.behind[piece.names[0]] = get(piece.names[0])[rows:].clone()

    def fill(self, around: GraphModule, get: Get, device: torch.device, given: Collection[str] = ()) -> None:
        """Give what runs as captured its tensors, where the module has none of its own; and the buffers that are
        `given`, which the module holds as they were made."""
        for name, parameter in [*around.named_parameters()]:
            if parameter.is_meta:
                owner, _, last = name.rpartition(".")
                made = nn.Parameter(get(name).to(device, parameter.dtype), requires_grad=False)
                around.get_submodule(owner).register_parameter(last, made)
        for name, buffer in [*around.named_buffers()]:
            if name in given and name in self.names:
                owner, _, last = name.rpartition(".")
                around.get_submodule(owner).register_buffer(last, get(name).to(device, buffer.dtype))

    def keep(self, module: nn.Module) -> None:
        """Let the stand-in's state dict be that of the module, with this rank's experts."""
        module._register_state_dict_hook(self._saved)
        module.register_load_state_dict_pre_hook(self._loaded)

    def _saved(self, module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
        inside = {name: state.pop(name) for name in list(state) if name.startswith(prefix)}
        held = _held(module)
        found = self.rest | {name: inside[prefix + at] for name, at in held.items() if name in self.names}
        attributes = _attributes(module)
        for weight in self.weights:
            own = inside[f"{prefix}{AROUND}.{LAYER}.{attributes[weight.name]}"]
            for name, part in weight.spread(own, self.first(weight)).items():
                shape = self.shapes[name]
                found[name] = part.reshape(-1, *shape[1:]) if weight.experts else part.reshape(shape)
                if name in self.behind:
                    found[name] = torch.cat([found[name], self.behind[name].to(found[name])])
        state.update({prefix + name: found[name] for name in self.names if name in found})

    def _loaded(self, module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        given = {name: state.pop(prefix + name) for name in self.names if prefix + name in state}
        for name, at in _held(module).items():
            if name in given:
                state[prefix + at] = given[name]
        for name in self.rest.keys() & given.keys() - _held(module).keys():
            self.rest[name] = given[name]
        for name in self.behind.keys() & given.keys():
            self.behind[name] = given[name][self.shapes[name][0] - len(self.behind[name]) :].clone()
        attributes = _attributes(module)
        for weight in self.weights:
            if all(name in given for name in self._needed(weight)):
                at = f"{prefix}{AROUND}.{LAYER}.{attributes[weight.name]}"
                state[at] = self.own(weight, given.__getitem__)

    def _needed(self, weight: Weight) -> list[str]:
        """The module's tensors that this rank's part of a weight is made of."""
        first, count = self.first(weight), weight.experts // self.ranks
        return [
            name
            for piece in weight.pieces
            for name in (piece.names[first : first + count] if piece.listed else piece.names)
        ]


def _attributes(module: nn.Module) -> dict[str, str]:
    """Where the compiled layer has each of its weights, by their names."""
    layer = module.get_submodule(f"{AROUND}.{LAYER}")
    assert isinstance(layer, Layer)
    return layer.runner.table


def _held(module: nn.Module) -> dict[str, str]:
    """The module's names of what runs as captured, and where the stand-in has it."""
    around = module.get_submodule(AROUND)
    inside = [name for name, _ in (*around.named_parameters(), *around.named_buffers())]
    return {name: f"{AROUND}.{name}" for name in inside if not name.startswith(f"{LAYER}.")}


def opened(given: Mapping[str, Tensor] | str | Path, module: nn.Module) -> Mapping[str, Any]:
    """Tensors by name, or slices of files that read when they are indexed."""
    if isinstance(given, Mapping):
        return given
    path = Path(given)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or any(each.suffix != ".safetensors" or not each.exists() for each in files):
        raise refusal(
            "bad-weights", f"{given} is no `.safetensors` file, nor a folder of them", module, "or give a state dict"
        )
    from safetensors import safe_open  # noqa: PLC0415 - most compiles do without a file

    found: dict[str, Any] = {}
    for each in files:
        file: Any = safe_open(each, framework="pt")
        found |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - a file is no mapping
    return found
