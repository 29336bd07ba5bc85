"""What no module may be that is traced or compiled, said before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from epsc.grammar.trace.probe import Inputs, inputs_of
from epsc.grammar.trace.spans import module_span
from epsc.grammar.trace.twin import dtype_of, twin_of
from epsc.ir.dims import DType
from epsc.ir.errors import Diagnostic, EpsError

DTYPES = {torch.float32: DType.FP32, torch.bfloat16: DType.BF16, torch.float16: DType.FP16}

_SIZES = ("hidden_size", "hidden_dim", "d_model", "dim", "embed_dim", "n_embd")


def refusal(code: str, message: str, module: nn.Module | None = None, help: str | None = None) -> EpsError:
    """An error about a module, at its `forward`."""
    return EpsError(Diagnostic(code, message, module_span(module) if module else None, help=help))


def check_module(module: nn.Module, *, weights_given: bool = False) -> torch.dtype:
    """The dtype of the module. Raises EpsError when it cannot be traced as it is."""
    if not isinstance(module, nn.Module):
        raise refusal("not-a-module", f"epsc traces an nn.Module, not {type(module).__name__}")
    name = type(module).__name__
    if module.training:
        raise refusal(
            "training",
            f"{name} is in training mode, in which jitter and dropout may run; epsc compiles what inference computes",
            module,
            "call `module.eval()` first",
        )
    floating = [p for p in module.parameters() if p.is_floating_point()]
    if not floating:
        raise refusal("not-moe", f"{name} has no parameters, so it has no experts", module)
    if not weights_given and any(p.is_meta for p in module.parameters()):
        raise refusal(
            "meta-weights",
            f"the weights of {name} are on the meta device: there is nothing to compile with",
            module,
            "give `weights=`, a `.safetensors` file, a folder of them or a state dict; or call"
            " `module.to_empty(device=...)` and load",
        )
    if meta := [of for of, buffer in module.named_buffers() if buffer.is_meta]:
        raise refusal(
            "meta-weights",
            f"{name} has buffers on the meta device, such as `{meta[0]}`: nobody knows what they hold",
            module,
            "make it with parameters alone on the meta device, as `accelerate.init_empty_weights()` does",
        )
    dtype = dtype_of(module)
    if dtype not in DTYPES:
        known = ", ".join(str(each).removeprefix("torch.") for each in DTYPES)
        raise refusal("bad-dtype", f"{name} is in {str(dtype).removeprefix('torch.')}: epsc knows {known}", module)
    return dtype


def expect_meta(module: nn.Module) -> None:
    """Refuse a module with weights of its own where others are given. Raises EpsError."""
    if real := [name for name, parameter in module.named_parameters() if not parameter.is_meta]:
        raise refusal(
            "two-weights",
            f"{type(module).__name__} has weights, such as `{real[0]}`, and `weights=` gives others: which are meant?",
            module,
            "make it on the meta device (`with torch.device('meta')`), or load the weights and leave `weights=` out",
        )


def check_inputs(module: nn.Module, example: Sequence[Any] | Tensor | None) -> Inputs:
    """How the module is called: by the example, or by trying when there is none. Raises EpsError."""
    if example is not None:
        given = (example,) if isinstance(example, Tensor) else tuple(example)
        if inputs := inputs_of(given):
            _try(module, given)
            return inputs
        raise refusal("bad-example", "no example input is a tensor [.., tokens, hidden] of floating point", module)
    tried = []
    first = next(p for p in module.parameters() if p.is_floating_point())
    device = torch.device("cpu") if first.is_meta else first.device
    # On the meta device nothing can be called that looks at values, as experts do.
    called = twin_of(module, first.dtype, device) if first.is_meta else module
    for hidden in _widths(module):
        for lead in ((2, 4), (8,)):
            x = torch.zeros(*lead, hidden, dtype=first.dtype, device=device)
            tried.append(list(x.shape))
            try:
                with torch.no_grad():
                    called(x)
            except Exception:
                continue
            return Inputs((x,), 0)
    raise refusal(
        "bad-example",
        f"{type(module).__name__} cannot be called with one tensor of {', '.join(map(str, tried[:6]))}",
        module,
        "give `example_inputs`, as the module is called",
    )


def _try(module: nn.Module, given: tuple[Any, ...]) -> None:
    """Call the module as the user does. Raises EpsError when its own code cannot."""
    if any(p.is_meta for p in module.parameters()):
        return
    try:
        with torch.no_grad():
            module(*given)
    except Exception as error:
        what = f"{type(module).__name__} cannot be called with the example inputs: {type(error).__name__}: {error}"
        raise refusal("bad-example", what, module, "give all arguments that it needs, as it is called") from None


def _widths(module: nn.Module) -> list[int]:
    """The widths that tokens may have: what the module says, then what its matrices read."""
    config = getattr(module, "config", None)
    said = [getattr(owner, name, None) for owner in (module, config) for name in _SIZES]
    for child in module.children():
        said += [getattr(child, name, None) for name in _SIZES]
    read = [p.shape[-1] for p in module.parameters() if p.ndim >= 2] + [
        p.shape[1] for p in module.parameters() if p.ndim == 3
    ]
    return list(dict.fromkeys(int(n) for n in (*said, *read) if isinstance(n, int) and n > 1))
