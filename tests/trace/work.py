"""What ranks do in tests of traced modules. Each function is called on all ranks at the same time."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import epsc
from epsc.ir.errors import EpsError
from tests.trace import styles


def block_of(kind: str) -> nn.Module:
    """The same block on every rank."""
    torch.manual_seed(0)
    made: nn.Module = getattr(styles, kind)().eval()
    return made


def off(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).abs().max() / wanted.abs().max()) if wanted.numel() else 0.0


def style(rank: int, kind: str, schedule: str | None) -> float:
    """How far a stand-in on all ranks is off, on other tokens on each rank, also after its state was loaded again."""
    block = block_of(kind)
    compiled = epsc.compile(block, dist.group.WORLD, schedule)
    worst = 0.0
    for again in (False, True):
        if again:
            torch.manual_seed(1)
            state = {name: 0.2 * torch.randn_like(tensor) for name, tensor in block.state_dict().items()}
            own = compiled.state_dict()
            block.load_state_dict(state)
            compiled.load_state_dict(state)
            # Its own state goes back in, too.
            mine = compiled.state_dict()
            compiled.load_state_dict(own)
            compiled.load_state_dict(mine)
        for tokens in (7, 3 * rank, 1):
            torch.manual_seed(100 * rank + tokens)
            x = torch.randn(1, tokens, styles.HIDDEN)
            with torch.inference_mode():
                worst = max(worst, off(compiled(x), block(x)))
    return worst


def from_file(rank: int, path: str, kind: str) -> float:
    """A block without weights, compiled from a file of which each rank reads its own experts."""
    with torch.device("meta"):
        empty: nn.Module = getattr(styles, kind)().eval()
    compiled = epsc.compile(empty, dist.group.WORLD, weights=path, example_inputs=torch.randn(1, 5, styles.HIDDEN))
    assert not any(p.is_meta for p in compiled.parameters())
    torch.manual_seed(rank)
    x = torch.randn(1, 9, styles.HIDDEN)
    with torch.inference_mode():
        return off(compiled(x), block_of(kind)(x))


def error(_rank: int, what: str) -> tuple[str, str]:
    """The code and message of what must be refused."""
    block = block_of("IndexAdd")
    group: Any = None if what == "no-group" else dist.group.WORLD
    try:
        epsc.compile(block, group)
    except EpsError as error:
        return error.diagnostics[0].code, error.diagnostics[0].message
    return "", ""
