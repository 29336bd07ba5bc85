"""What is broken in transformers itself, so that no compiled block could be right: this fails when it is mended."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")


def test_nllb_moe_runs_two_experts_whatever_its_router_chooses() -> None:
    from tests.trace.families import Family, arguments, made

    module = "transformers.models.nllb_moe.modeling_nllb_moe"
    block = made(Family("nllb_moe", module, "NllbMoeSparseMLP", ""))
    given = arguments(block, 50)
    chosen, ran = [], []
    block.router.register_forward_hook(lambda _, __, out: chosen.append(out[2].argmax(-1)))
    for name, expert in block.experts.named_children():
        expert.register_forward_hook(lambda *_, name=name: ran.append(name))
    with torch.no_grad():
        block(*given)
    assert len(chosen[0].unique()) == 8
    assert ran == ["expert_0", "expert_1"]
