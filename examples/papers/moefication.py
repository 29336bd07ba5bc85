"""MoEfication (arXiv 2110.01786): a trained dense ReLU FFN, cut into experts by a pass, its weights laid out anew.

    python examples/papers/moefication.py           # what is left out, by the experts that a token meets
    epsc compile dense.eps -p "moefy{experts=96,top_k=20}"    # the program of a file that has such FFNs

The FFN of T5-base: 3072 neurons, in 96 experts of 32, of which a token meets a fifth. Experts weigh 1 each, so that
all of them together are the dense FFN.
"""

from __future__ import annotations

import torch
from torch import Tensor

import epsc
from epsc import driver
from epsc.interpret import interpret
from epsc.interpret.weights import random_param
from epsc.ir.source import Source
from epsc.passes.moefy import Moefy
from epsc.passes.pipeline import PIPELINE

DENSE = """\
let hidden = 768
let width = 3072
preset small { hidden = 64  width = 128  tokens = 64 }

layer t5(x: bf16[tokens, hidden]) {
  n   = call(norm, x, flops=0)
  ffn = mlp(n, relu, width)
  return x + ffn
}

cluster h200x8 { device = h200  ep = 8 }
tokens 512 .. 8192

schedule groups {
  split ffn_sent, ffn_up, ffn_act, ffn by expert_group into 2
}
"""
FEW = Moefy(experts=96, top_k=20)


def understood(by: Moefy, preset: str | None = None, **defines: str) -> driver.Layer:
    """The layer, with its FFN cut by the pass; `Moefy()` leaves it dense."""
    pipeline = tuple(by if isinstance(each, Moefy) else each for each in PIPELINE)
    source = Source("t5.eps", DENSE)
    return driver.understand(source, driver.Options(defines, preset, pipeline=pipeline))


def trained(width: int, hidden: int, bundles: int) -> dict[str, Tensor]:
    """Weights as training leaves them, in that some neurons look for the same: bundles of them, in no order."""
    looks = random_param("looks", (bundles, hidden), 0, torch.float32)
    own = random_param("own", (width, hidden), 0, torch.float32, scale=0.3)
    up = (looks.repeat_interleave(width // bundles, 0) + own) / hidden**0.5
    mixed = torch.randperm(width, generator=torch.Generator().manual_seed(0))
    return {"ffn.up": up[mixed], "ffn.down": random_param("down", (hidden, width), 0, torch.float32, scale=width**-0.5)}


def left_out(dense: driver.Layer, by: Moefy, weights: dict[str, Tensor], x: Tensor) -> float:
    """How far the cut FFN is from the dense one, relative to that."""
    modules = {"norm": torch.tanh}
    found = []
    for layer, values in ((dense.said, weights), (by(dense.said), epsc.moefied(dense.said, by, weights))):
        (y,) = interpret(layer, {"x": x}, values, modules=modules)
        found.append(y - x)
    return float((found[1] - found[0]).norm() / found[0].norm())


def main() -> None:
    dense = understood(Moefy())
    weights = trained(3072, 768, 96)
    x = torch.randn(64, 768, generator=torch.Generator().manual_seed(1))
    for k in (96, 48, FEW.top_k, 5):
        print(f"{k} of 96 experts: {left_out(dense, Moefy(96, k), weights, x):.3f} of the FFN is left out")


if __name__ == "__main__":
    main()
