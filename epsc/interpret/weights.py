"""Made-up weights and inputs, the same for whoever asks: the oracle, and each rank for its own experts.

The scheme, which an emitted program repeats: a tensor is standard normal numbers in float32, from a torch.Generator
seeded with crc32 of `SEED/NAME`, times a scale, then converted to its dtype. Of a sharded parameter each expert is
such a tensor of its own, seeded with `SEED/NAME/EXPERT`. So no parameter depends on another, nor an expert on others.
"""

from __future__ import annotations

import zlib
from math import prod

import torch
from torch import Tensor

from epsc.ir.attrs import RowsAttrs
from epsc.ir.dims import DType
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.graph import Graph
from epsc.ir.scales import param_scales


def random_param(
    name: str,
    shape: tuple[int, ...],
    seed: int,
    dtype: torch.dtype,
    expert: int | None = None,
    *,
    scale: float = 1.0,
    device: str | torch.device = "cpu",
) -> Tensor:
    """`scale` times a standard normal tensor of `shape`, by the scheme above.

    With `expert`, `shape` is that of one expert. The numbers are made in float32 whatever the dtype, so a bf16 tensor
    is the rounded fp32 one. A `device` makes its own: the same ones each time, but not those of another kind of device.
    """
    generator = _generator(f"{seed}/{name}" if expert is None else f"{seed}/{name}/{expert}", device)
    return torch.randn(shape, generator=generator, device=device).mul_(scale).to(dtype)


def random_weights(
    graph: Graph, seed: int, dtype: torch.dtype, *, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """A tensor for each parameter of `graph`, all experts of it, by the scheme above and `param_scales`."""
    weights = {}
    scales = param_scales(graph)
    for param in graph.params:
        shape, scale = tuple(dim.scale for dim in param.type.shape), scales[param.name]
        if not param.sharded:
            weights[param.name] = random_param(param.name, shape, seed, dtype, scale=scale, device=device)
            continue
        # Filled in place: a stack of experts made one by one would hold a large weight twice.
        weights[param.name] = torch.empty(shape, dtype=dtype, device=device)
        for e, out in enumerate(weights[param.name]):
            out.copy_(random_param(param.name, shape[1:], seed, dtype, e, scale=scale, device=device))
    return weights


def random_inputs(
    graph: Graph, tokens: int, seed: int, dtype: torch.dtype, *, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """A tensor for each input of `graph`: standard normal, or k different experts per token where it wants experts.

    Seeded with crc32 of `SEED/input/NAME`. Raises EpsError for a size that `tokens` does not settle, and for whole
    numbers that are not experts.
    """
    made = {}
    for name in graph.inputs:
        type = graph.types[name]
        for dim in type.shape:
            if not dim.known and (dim.symbol != "tokens" or dim.cuts):
                raise EpsError(
                    Diagnostic("unknown-size", f"input `{name}` ({type}) has {dim}, which `tokens` does not say")
                )
        shape = tuple(dim.scale if dim.known else dim.scale * tokens for dim in type.shape)
        generator = _generator(f"{seed}/input/{name}", device)
        if type.dtype in (DType.INT32, DType.INT64):
            shuffled = torch.rand(shape[0], _experts(graph, name), generator=generator, device=device).argsort(-1)
            made[name] = shuffled[:, : prod(shape[1:])].reshape(shape)
        else:
            made[name] = torch.randn(shape, generator=generator, device=device).to(dtype)
    return made


def _generator(key: str, device: str | torch.device) -> torch.Generator:
    # 32 bits, because torch's CPU generator ignores the rest; a hash, because Python's differs from run to run.
    return torch.Generator(device).manual_seed(zlib.crc32(key.encode()))


def _experts(graph: Graph, name: str) -> int:
    for node in graph.users[name]:
        if isinstance(node.attrs, RowsAttrs):
            return node.attrs.among or node.attrs.experts
    message = f"input `{name}` ({graph.types[name]}) holds whole numbers, and no op reads it as experts"
    raise EpsError(Diagnostic("unknown-input", message))
