"""The layer that is measured: its manifest, its weights on this rank, what it should return, and who takes part."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epsc.bench.contender import Contender, load_module, load_program
from epsc.bench.handwritten import AllGather, AllToAll, Layer, Replicated
from epsc.bench.loads import BY_HAND
from epsc.bench.ranks import Ranks
from epsc.bench.reference import clear_tokens, reference
from epsc.bench.shape import Router, Shape, Table, Weight
from epsc.bench.weights import make_weights

KINDS: dict[str, type[Layer]] = dict(zip(BY_HAND, (AllToAll, AllGather, Replicated), strict=True))


@dataclass(frozen=True)
class Manifest:
    """What `epsc.bench.programs` wrote beside the programs."""

    folder: Path
    layer: str
    hidden: int
    router: Router
    shape: Shape | None
    """For the layers by hand; None, with the reason in `unlike`, where the layer is none that they know."""
    unlike: str
    programs: tuple[dict[str, Any], ...]

    @staticmethod
    def read(folder: Path) -> Manifest:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        shape = Shape(**found["shape"]) if found["shape"] else None
        router = Router(**found["router"])
        return Manifest(
            folder, found["layer"], found["hidden"], router, shape, found["unlike"], tuple(found["programs"])
        )

    def of(self, ep: int) -> dict[str, dict[str, Any]]:
        """Programs for so many ranks, by name."""
        return {p["name"]: p for p in self.programs if p["ep"] == ep}


class Given:
    """All weights on this rank, and the right results.

    Every expert's: one of the layers by hand holds them all; the others take views of their own.
    """

    def __init__(self, manifest: Manifest, ranks: Ranks, dtype: torch.dtype) -> None:
        self.manifest, self.dtype, self.module = manifest, dtype, None
        if manifest.shape:
            self.table: Table = manifest.shape.weights
        else:
            # The program says what weights it has, and what it should return.
            program = next(iter(manifest.of(ranks.world).values()))
            self.module = load_module(manifest.folder / program["file"])
            self.table = {n: Weight(w.shape, w.scale, w.sharded) for n, w in self.module.WEIGHTS.items()}
        experts = range(manifest.router.experts)
        self.weights = make_weights(self.table, experts, dtype, ranks.device)
        local = len(experts) // ranks.world
        mine = slice(ranks.rank * local, (ranks.rank + 1) * local)
        self.own = {name: w[mine] if self.table[name].sharded else w for name, w in self.weights.items()}

    def raw(self, name: str, expert: int | None = None) -> Tensor:
        return self.weights[name] if expert is None else self.weights[name][expert]

    def result(self, x: Tensor) -> Tensor:
        """y fp32[tokens, hidden]."""
        if self.manifest.shape:
            return reference(self.manifest.shape, x, self.raw)
        assert self.module is not None
        made: Tensor = self.module.reference(x.float(), self.raw, self.dtype)
        return made

    def clear(self, x: Tensor) -> Tensor:
        """bool[tokens]: which of them have no near tie between experts."""
        return clear_tokens(self.manifest.router, x, self.raw)


def contenders_by_hand(given: Given, ranks: Ranks, sum_by: str, names: Iterable[str], graph: bool) -> list[Contender]:
    """The layers by hand of these names."""
    shape = given.manifest.shape
    found = []
    for name, kind in KINDS.items():
        if shape is None or name not in names:
            continue
        layer = kind(shape, given.own if kind.sharded else given.weights, sum_by=sum_by)
        found.append(Contender(name, layer, by_hand=True))
        if graph and hasattr(layer, "capture") and ranks.device.type == "cuda":
            found.append(Contender(f"{name}+graph", layer, by_hand=True, graph=True))
    return found


def contenders_of(given: Given, ranks: Ranks, program: dict[str, Any], graph: bool) -> list[Contender]:
    """A program, and the same as CUDA graphs if its layer can be captured."""
    layer = load_program(given.manifest.folder / program["file"], given.own, ranks.device, given.dtype)
    transfers = frozenset(program["transfers"])
    found = [Contender(program["name"], layer, transfers=transfers)]
    if graph and hasattr(layer, "capture") and ranks.device.type == "cuda":
        found.append(Contender(f"{program['name']}+graph", layer, graph=True, transfers=transfers))
    return found
