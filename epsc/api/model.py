"""Whole models: every MoE block of a model is found, traced once for each kind, and swapped."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor, nn

from epsc.api.compiling import Compiled, Given, Load, ranks_of, stand_in
from epsc.api.refuse import check_module, expect_meta, refusal
from epsc.api.state import opened
from epsc.api.tracing import Traced, fingerprint, trace
from epsc.ir.errors import EpsError

_PLACE = frozenset({"layer_idx", "layer_id", "layer_number"})
"""Attributes that say where in a model a block is: blocks that differ in them only are of one kind."""


@torch.inference_mode(False)  # what is made here is used outside of it, too
def compile_model(
    model: nn.Module,
    group: dist.ProcessGroup | None = None,
    schedule: str | None = None,
    tokens: Load | None = None,
    *,
    weights: Given | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """The same model with a stand-in for every MoE block, as `compile` makes them. Raises EpsError if it has none.

    Blocks that have experts and cannot be swapped stay as they are; a warning names them, and why. `weights`: a
    `.safetensors` file, a folder of them or a state dict, for a model on the meta device: each rank reads the rest of
    the model, and of one block after the other the experts that are its own.
    """
    ranks = ranks_of(model, group)
    check_module(model, weights_given=weights is not None)
    if weights is not None:
        expect_meta(model)
    tensors = None if weights is None else opened(weights, model)
    kinds: dict[object, Traced | EpsError] = {}
    swapped: list[str] = []
    left: dict[str, EpsError] = {}
    for name in list(candidates(model)):
        if any(_nested(name, done) for done in swapped):
            continue
        block = model.get_submodule(name)
        state = fingerprint(block)
        kind = tuple(each for each in state if each[0].rpartition(".")[2] not in _PLACE)
        if kind not in kinds:
            try:
                kinds[kind] = trace(block)
            except EpsError as error:
                kinds[kind] = error
        known = kinds[kind]
        if isinstance(known, EpsError):
            left[name] = known
            continue
        traced = replace(known, module=block, before=state)
        own = None if tensors is None else _under(name, tensors)
        model.set_submodule(name, stand_in(traced, group, ranks, schedule, tokens, own, device))
        swapped.append(name)
    if not swapped:
        likely = [error for name, error in left.items() if has_experts(model.get_submodule(name), error)]
        if found := likely or list(left.values()):
            raise found[0]
        raise refusal("not-moe", f"{type(model).__name__} has no MoE blocks", model)
    _report(model, {name: why for name, why in left.items() if not any(_nested(name, done) for done in swapped)})
    if tensors is not None:
        _fill(model, tensors, device)
    return model


def _nested(name: str, other: str) -> bool:
    """Whether one of two submodules is the other or inside it."""
    return f"{name}.".startswith(f"{other}.") or other.startswith(f"{name}.")


def _under(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a submodule, by its own names."""
    return {each.removeprefix(f"{name}."): value for each, value in tensors.items() if each.startswith(f"{name}.")}


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], device: torch.device | str | None) -> None:
    """Read what is on the meta device still, and buffers of the rest. Tensors that are one in the model are one
    afterwards."""
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Compiled))
    made: dict[nn.Parameter, nn.Parameter] = {}
    for owner_name, owner in model.named_modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            full = f"{owner_name}.{name}" if owner_name else name
            if parameter not in made and full not in tensors:
                raise refusal("no-weight", f"`{full}` of {type(model).__name__} is not among the weights", model)
            if parameter not in made:
                value = tensors[full][:].to(device or "cpu", parameter.dtype)
                made[parameter] = nn.Parameter(value, requires_grad=False)
            owner.register_parameter(name, made[parameter])
        for name, buffer in list(owner.named_buffers(recurse=False)):
            full = f"{owner_name}.{name}" if owner_name else name
            saved = name not in owner._non_persistent_buffers_set and not full.startswith(inside)
            if saved and full in tensors:
                owner.register_buffer(name, tensors[full][...].to(buffer.device, buffer.dtype))


def has_experts(block: nn.Module, error: EpsError) -> bool:
    """Whether a module that could not be read is a MoE block: it says so by a name, or its experts were found."""
    if any(each.code in ("unknown-experts", "mismatch") for each in error.diagnostics):
        return True
    return any(re.search(r"(^|_)experts?$", name) for name, _ in block.named_children())


def _report(model: nn.Module, left: Mapping[str, EpsError]) -> None:
    """Warn of the blocks that stay as they are: the innermost of each, by kind."""
    blocks = [name for name, error in left.items() if has_experts(model.get_submodule(name), error)]
    inner = [name for name in blocks if not any(other.startswith(f"{name}.") for other in blocks)]
    inner.sort(key=lambda name: str(left[name]))
    for why, names in groupby(inner, key=lambda name: str(left[name])):
        first, *more = names
        which = f"`{first}`" + (f" and {len(more)} more like it" if more else "")
        warnings.warn(f"{which} of {type(model).__name__} stays as it is, not compiled:\n{why}", stacklevel=3)


def candidates(model: nn.Module) -> Iterator[str]:
    """Submodules that may be MoE blocks: those around bare weights or lists of like modules; inner ones first."""
    found: dict[str, None] = {}
    for name, module in model.named_modules():
        own = not type(module).__module__.startswith("torch.nn")
        stacked = own and any(p.ndim > 1 for p in module.parameters(recurse=False))
        kinds = (
            [type(child) for child in module.children()] if isinstance(module, nn.ModuleList | nn.ModuleDict) else []
        )
        if not name or not (stacked or (len(kinds) > 1 and len(set(kinds)) == 1)):
            continue
        parent = name.rpartition(".")[0]
        # Experts that are a module of their own are called with a routing: the block is what calls them.
        for each in (parent, parent.rpartition(".")[0], name):
            if each:
                found[each] = None
    yield from sorted(found, key=lambda each: -each.count("."))
