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


class Tower(nn.Module):
    """Blocks behind each other, with norms."""

    def __init__(self, kinds: list[type[nn.Module]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(kind() for kind in kinds)
        self.norm = nn.LayerNorm(styles.HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(self.norm(x))
        return x


def model_from_folder(rank: int, folder: str) -> float:
    """A model without weights, whose blocks are swapped and read from files."""
    kinds: list[type[nn.Module]] = [styles.IndexAdd, styles.IndexAdd]
    with torch.device("meta"):
        empty = Tower(kinds).eval()
    model = epsc.compile_model(empty, dist.group.WORLD, weights=folder)
    assert not any(p.is_meta for p in model.parameters())
    torch.manual_seed(0)
    whole = Tower(kinds).eval()
    torch.manual_seed(rank)
    x = torch.randn(1, 9, styles.HIDDEN)
    with torch.inference_mode():
        return off(model(x), whole(x))


def error(_rank: int, what: str) -> tuple[str, str]:
    """The code and message of what must be refused."""
    block = block_of("Stacked")
    if what == "five-experts":
        assert isinstance(block, styles.Stacked)
        sizes = (styles.HIDDEN, 5), (5, styles.HIDDEN, styles.INNER), (5, styles.INNER, styles.HIDDEN)
        block.gate, block.up, block.down = (nn.Parameter(torch.randn(*size)) for size in sizes)
    group: Any = None if what == "no-group" else dist.group.WORLD
    try:
        epsc.compile(block, group)
    except EpsError as error:
        return error.diagnostics[0].code, error.diagnostics[0].message
    return "", ""


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {"num_experts": 4, "norm_topk_prob": True},
    "olmoe": {"num_experts": 4, "num_key_value_heads": 4},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "gpt_oss": {"num_local_experts": 4},
}


def model_of(name: str, implementation: str) -> Any:
    """A tiny model of a family, the same on every rank."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(name, **(SMALL | MODELS[name]))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, experts_implementation=implementation).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def generate(rank: int, name: str) -> tuple[list[list[int]], list[list[int]], bool]:
    """Tokens by eager, and by epsc on all ranks, each with prompts of its own; whether experts are shared."""
    import warnings

    import epsc.hf

    warnings.simplefilter("ignore")
    epsc.hf.enable(dist.group.WORLD)
    model = model_of(name, "eager")
    torch.manual_seed(10 + rank)
    ids = torch.randint(1, 64, (2, 5))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    eager = model.generate(ids, **options).tolist()
    model.set_experts_implementation("epsc")
    compiled = model.generate(ids, **options).tolist()
    experts = [m for m in model.modules() if hasattr(m, epsc.hf.SITE)]
    local = {p.shape[0] for m in experts for p in m.parameters() if p.ndim == 3}
    return eager, compiled, local == {2}
