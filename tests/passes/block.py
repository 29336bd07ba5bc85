"""A layer to try passes on, what they make of it, and what they refuse."""

from __future__ import annotations

import pytest

from epsc.ir.errors import EpsError
from epsc.ir.schedule import Schedule
from tests.proof.schedules import compiled

BLOCK = """
layer block(x: bf16[tokens, 64]) {
  r    = route(x, experts=10, top_k=2)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, up, 64))
  back = combine(gemm(h, down, 64), r)
  return back + mlp(x, swiglu, 64)
}
"""


def decided(directives: str = "", passes: str = "", ep: int = 2, layers: int = 1) -> Schedule:
    stack = f"layer model(x: bf16[tokens, 64]) {{ return stack(block, x, {layers}) }}" if layers > 1 else ""
    text = f"{BLOCK}{stack}\ncluster c {{ ep = {ep} }}\nschedule s {{\n{directives}\n}}"
    return compiled(text, passes).schedule


def refusal(directives: str, passes: str = "", ep: int = 2) -> EpsError:
    with pytest.raises(EpsError) as caught:
        decided(directives, passes, ep)
    return caught.value


def keys(schedule: Schedule, node: str) -> list[str]:
    return [step.key for step in schedule.steps if step.node == node]


def place(schedule: Schedule, key: str) -> int:
    return next(i for i, step in enumerate(schedule.steps) if step.key == key)
