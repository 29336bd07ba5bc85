"""What a layer is, to those who measure it: its router, its sizes, its weights. No torch, and no compiler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Router:
    """How a token chooses its experts; the fields are those of `route` in the language."""

    experts: int
    top_k: int
    score: str = "softmax"
    choose: str = "by_score"
    choice_bias: bool = False
    bias: bool = False
    groups: int = 1
    top_groups: int = 1
    group_by: str = "max"
    name: str = "r"
    """Its weights are `<name>.weight`, `<name>.bias` and `<name>.choice_bias`."""


class Weight(NamedTuple):
    """A weight as checkpoints hold it."""

    shape: tuple[int, ...]
    scale: float
    """Of made-up numbers."""
    sharded: bool = False
    """Its first dimension counts experts, and each rank keeps its own."""


Table = dict[str, Weight]
"""The weights of a layer by name."""


@dataclass(frozen=True)
class Shape:
    """A layer that the hand-written ones can be: sizes in elements, and its router. Experts and the shared MLP are
    SwiGLU without biases."""

    name: str
    hidden: int
    width: int
    """Of an expert: its gate_up is [2*width, hidden], its down [hidden, width]."""
    experts: int
    top_k: int
    shared: int = 0
    """Width of the shared MLP; 0: there is none."""
    score: str = "softmax"
    choice_bias: bool = False
    groups: int = 1
    top_groups: int = 1
    group_by: str = "max"
    renorm: bool = False
    scale: float = 1.0

    @property
    def router(self) -> Router:
        return Router(
            self.experts,
            self.top_k,
            score=self.score,
            choice_bias=self.choice_bias,
            groups=self.groups,
            top_groups=self.top_groups,
            group_by=self.group_by,
        )

    @property
    def weights(self) -> Table:
        """With all experts. Names are those that epsc gives."""
        h, w, e = self.hidden, self.width, self.experts
        found = {"r.weight": Weight((e, h), h**-0.5)}
        if self.choice_bias:
            found["r.choice_bias"] = Weight((e,), 0.02 if self.score == "sigmoid" else 0.1 / e)
        found["gate_up"] = Weight((e, 2 * w, h), h**-0.5, sharded=True)
        found["down"] = Weight((e, h, w), w**-0.5, sharded=True)
        if self.shared:
            found["mlp.gate_up"] = Weight((2 * self.shared, h), h**-0.5)
            found["mlp.down"] = Weight((h, self.shared), self.shared**-0.5)
        return found
