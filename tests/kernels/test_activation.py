"""Fused activations compute what the oracle computes, for every attribute that they can have."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from epsc.codegen.triton_kernels import activation
from epsc.interpret import arithmetic
from epsc.ir.attrs import Act, ActAttrs

Load = Callable[[str], Any]
ACTIVATIONS = [
    ActAttrs(fn, limit, alpha, offset, interleaved)
    for fn in Act
    for limit, alpha, offset, interleaved in ((0.0, 1.0, 0.0, False), (0.7, 1.702, 1.0, True), (0.7, 1.0, 0.0, False))
    if fn.gated or (alpha == 1.0 and offset == 0.0 and not interleaved)
] + [
    ActAttrs(Act.SWIGLU, alpha=1.702, offset=0.5, gate_softcap=0.8, up_softcap=2.0),
    ActAttrs(Act.SWIGLU, up_softcap=0.7),
]


@pytest.mark.parametrize("attrs", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("count, width, dtype", [(9, 40, torch.bfloat16), (1, 264, torch.float32)], ids=str)
def test_activations(load: Load, attrs: ActAttrs, count: int, width: int, dtype: torch.dtype) -> None:
    kernels = load(activation("act", attrs))
    numbers = torch.Generator().manual_seed(width)
    x = (2 * torch.randn(count, width * (1 + attrs.fn.gated), generator=numbers)).to(dtype)
    out = torch.full((count, width), torch.nan, dtype=dtype)
    kernels.act(x, out)
    torch.testing.assert_close(out, arithmetic.activation(attrs, x.float()).to(dtype))


@pytest.mark.parametrize("fn", Act, ids=str)
def test_nan_is_not_hidden_and_no_rows_are_no_work(load: Load, fn: Act) -> None:
    kernels = load(activation("act", ActAttrs(fn, 0.7)))
    out = torch.zeros(2, 8)
    kernels.act(torch.full((2, 8 * (1 + fn.gated)), torch.nan), out)
    assert out.isnan().all()
    kernels.act(torch.empty(0, 8 * (1 + fn.gated)), torch.empty(0, 8))
