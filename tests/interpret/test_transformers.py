"""Published layers as Hugging Face transformers runs them. Skipped where it is missing: epsc does not need it."""

import pytest
import torch
from torch import Tensor, nn

from epsc.interpret import interpret
from epsc.ir.attrs import Act, ActAttrs, Choose, ExpertGemmAttrs, GemmAttrs, GroupBy, RouteAttrs, Score
from tests.interpret.build import Build, moe

pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS, HIDDEN, INNER, EXPERTS, TOP_K = 40, 16, 12, 8, 3
SWIGLU = ActAttrs(Act.SWIGLU)


def filled(block: nn.Module) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """The block with every parameter and buffer random, these by name, and an input."""
    generator = torch.Generator().manual_seed(0)
    block = block.double().eval()
    tensors = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    x = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    return block, {name: tensor.detach() for name, tensor in tensors.items()}, x


def test_mixtral() -> None:
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K
    )
    block, w, x = filled(MixtralSparseMoeBlock(config))
    graph = moe(RouteAttrs(EXPERTS, TOP_K, renorm=True), hidden=HIDDEN, inner=INNER, act=SWIGLU)
    weights = {
        "r.weight": w["gate.weight"],
        "up.weight": w["experts.gate_up_proj"],
        "down.weight": w["experts.down_proj"],
    }
    (y,) = interpret(graph, {"x": x}, weights)
    # The block's softmax is in float32 whatever its input is.
    torch.testing.assert_close(y, block(x[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("renorm", [False, True])
def test_deepseek_v3(renorm: bool) -> None:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Config, DeepseekV3MoE

    config = DeepseekV3Config(
        hidden_size=HIDDEN,
        moe_intermediate_size=INNER,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        n_group=4,
        topk_group=2,
        n_shared_experts=2,
        norm_topk_prob=renorm,
        routed_scaling_factor=2.5,
    )
    block, w, x = filled(DeepseekV3MoE(config))
    route = RouteAttrs(
        EXPERTS,
        TOP_K,
        Score.SIGMOID,
        choice_bias=True,
        groups=4,
        top_groups=2,
        group_by=GroupBy.TOP2,
        renorm=renorm,
        scale=2.5,
    )
    b = Build(HIDDEN)
    r = b.route("r", route)
    sent = b.dispatch("sent", r, EXPERTS, TOP_K)
    h = b.act("h", b.expert_gemm("up", sent, ExpertGemmAttrs(EXPERTS, 2 * INNER)), SWIGLU)
    down = b.expert_gemm("down", h, ExpertGemmAttrs(EXPERTS, HIDDEN))
    routed = b.combine("back", down, r, EXPERTS, TOP_K)
    shared = b.act("s.h", b.gemm("s.up", "x", GemmAttrs(4 * INNER)), SWIGLU)
    graph = b.graph(b.add("y", routed, b.gemm("s.down", shared, GemmAttrs(HIDDEN))))
    weights = {
        "r.weight": w["gate.weight"],
        "r.choice_bias": w["gate.e_score_correction_bias"],
        "up.weight": w["experts.gate_up_proj"],
        "down.weight": w["experts.down_proj"],
        "s.up.weight": torch.cat([w["shared_experts.gate_proj.weight"], w["shared_experts.up_proj.weight"]]),
        "s.down.weight": w["shared_experts.down_proj.weight"],
    }
    (y,) = interpret(graph, {"x": x}, weights)
    # The block's router is in float32 whatever its input is.
    torch.testing.assert_close(y, block(x[None])[0], rtol=1e-5, atol=1e-4)


def test_gpt_oss() -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssMLP

    config = GptOssConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K
    )
    block, w, x = filled(GptOssMLP(config))
    x = 3 * x  # far enough out that both clamps are met
    route = RouteAttrs(EXPERTS, TOP_K, choose=Choose.BY_LOGIT, bias=True)
    act = ActAttrs(Act.SWIGLU, limit=7.0, alpha=1.702, offset=1.0, interleaved=True)
    graph = moe(route, hidden=HIDDEN, inner=INNER, act=act, bias=True, transposed=True)
    weights = {
        "r.weight": w["router.weight"],
        "r.bias": w["router.bias"],
        "up.weight": w["experts.gate_up_proj"],
        "up.bias": w["experts.gate_up_proj_bias"],
        "down.weight": w["experts.down_proj"],
        "down.bias": w["experts.down_proj_bias"],
    }
    (y,) = interpret(graph, {"x": x}, weights)
    expected, _ = block(x[None])
    torch.testing.assert_close(y, expected[0])


def test_deepseek_v2() -> None:
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Config, DeepseekV2Moe

    config = DeepseekV2Config(
        hidden_size=HIDDEN,
        moe_intermediate_size=INNER,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        n_group=4,
        topk_group=2,
        topk_method="group_limited_greedy",
        num_attention_heads=4,
        n_shared_experts=1,
        routed_scaling_factor=16.0,
    )
    block, w, x = filled(DeepseekV2Moe(config))
    route = RouteAttrs(EXPERTS, TOP_K, groups=4, top_groups=2, group_by=GroupBy.MAX, scale=16.0)
    graph = moe(route, hidden=HIDDEN, inner=INNER, act=SWIGLU)
    weights = {
        "r.weight": w["gate.weight"],
        "up.weight": w["experts.gate_up_proj"],
        "down.weight": w["experts.down_proj"],
    }
    (y,) = interpret(graph, {"x": x}, weights)
    expected = block(x[None])[0] - block.get_submodule("shared_experts")(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-3)
