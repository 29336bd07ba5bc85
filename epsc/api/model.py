"""Whole models: every MoE block of a model is found, traced once for each kind, and swapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch.distributed as dist
from torch import nn

from epsc.api.compiling import Load, ranks_of, stand_in
from epsc.api.refuse import check_module, refusal
from epsc.api.tracing import Traced, fingerprint, trace
from epsc.ir.errors import EpsError

_PLACE = frozenset({"layer_idx", "layer_id", "layer_number"})
"""Attributes that say where in a model a block is: blocks that differ in them only are of one kind."""


def compile_model(
    model: nn.Module,
    group: dist.ProcessGroup | None = None,
    schedule: str | None = None,
    tokens: Load | None = None,
) -> nn.Module:
    """The same model with a stand-in for every MoE block, as `compile` makes them. Raises EpsError if it has none."""
    ranks = ranks_of(model, group)
    check_module(model)
    kinds: dict[object, Traced | None] = {}
    swapped: list[str] = []
    refused: list[EpsError] = []
    for name in list(candidates(model)):
        if any(done.startswith(f"{name}.") or name.startswith(f"{done}.") or done == name for done in swapped):
            continue
        block = model.get_submodule(name)
        state = fingerprint(block)
        kind = tuple(each for each in state if each[0].rpartition(".")[2] not in _PLACE)
        if kind not in kinds:
            try:
                kinds[kind] = trace(block)
            except EpsError as error:
                kinds[kind] = None
                refused.append(error)
        if known := kinds[kind]:
            traced = replace(known, module=block, before=state)
            model.set_submodule(name, stand_in(traced, group, ranks, schedule, tokens))
            swapped.append(name)
    if not swapped:
        if refused:
            raise refused[0]
        raise refusal("not-moe", f"{type(model).__name__} has no MoE blocks", model)
    return model


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
