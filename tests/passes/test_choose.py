"""choose: which implementation each op takes."""

from __future__ import annotations

import pytest

from tests.passes.block import decided, refusal


def test_choose_takes_what_the_schedule_says_else_the_option_else_the_only_one() -> None:
    made = decided("use dense for up when rows < 8 else batched", "choose{experts=dense}")
    assert str(made.step["up"].impl) == "dense when rows < 8 else batched"
    assert str(made.step["down"].impl) == "dense"
    assert str(made.step["mlp"].impl) == "torch"
    assert str(made.step["sent.all2all"].impl) == "nccl when device == cuda else gloo"


def test_choose_takes_what_needs_cuda_on_cuda_only() -> None:
    made = decided(passes="fuse{epilogue=false, addends=false}")
    for key in ("h", "back.ungroup", "back", "mlp.act"):
        assert str(made.step[key].impl) == "triton when device == cuda else torch"
    for key in ("sent", "sent.permute", "mlp.gate_up", "return"):
        assert str(made.step[key].impl) == "torch"


def test_use_reaches_every_op_that_has_the_implementation() -> None:
    made = decided("use torch for h, back\nuse triton for mlp when tokens > 4096 else torch")
    # What the layer adds to `back` is part of its sum.
    assert [str(made.step[key].impl) for key in ("h", "back.ungroup", "return")] == ["torch"] * 3
    assert str(made.step["back.all2all"].impl) == "nccl when device == cuda else gloo"
    # Gemms have no `triton`, and so keep what they had.
    assert str(made.step["mlp.act"].impl) == "triton when tokens > 4096 else torch"
    made = decided("use triton for h when rows > 4096 else torch")
    assert str(made.step["h"].impl) == "triton when rows > 4096 else torch"


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("use triton for mlp when rows > 4096 else torch", "`mlp` runs on tokens, where nothing has `rows`"),
        ("use torch for back when max_rows < 8 else triton", "`back` also runs on tokens, where nothing has"),
        ("use triton for back when tokens > 8 else nccl", "no op of `back` has `triton` and `nccl`"),
        ("use batched for sent", "`batched` is no implementation of `sent`"),
        ("use torch for h when rows < 8 else grouped", "no op of `h` has `torch` and `grouped`"),
    ],
)
def test_use_refuses_what_an_op_cannot_have(directive: str, message: str) -> None:
    assert message in str(refusal(directive))
