"""The blocks and the model: configs at true size and small, and a model made of one."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

DTYPE = torch.bfloat16
SEED = 7
ONE_SIDED = "use copy for sent  use put for back  local_reduce back  run {} beside sent"
GROUPED = "grouped_mm"


@dataclass(frozen=True)
class Case:
    """A block: its family, its config at true size and small, its `.eps` file, and what runs beside the dispatch."""

    name: str
    family: str
    config: dict[str, Any]
    small: dict[str, Any]
    file: str
    beside: tuple[str, str]
    """As the trace calls it, and as the file does."""
    rename: tuple[str, str] = ("", "")
    """The start of a weight's name in the trace, and in the file."""


QWEN = {
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
SMALL_QWEN = QWEN | {
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "intermediate_size": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
}
DEEPSEEK = {
    "hidden_size": 5120,
    "moe_intermediate_size": 1536,
    "intermediate_size": 12288,
    "n_routed_experts": 160,
    "num_experts_per_tok": 6,
    "n_group": 8,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
    "n_shared_experts": 2,
    "routed_scaling_factor": 16.0,
    "first_k_dense_replace": 0,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 128,
}
SMALL_DEEPSEEK = DEEPSEEK | {
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "intermediate_size": 64,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
}
CASES = (
    Case("Qwen3-30B-A3B", "qwen3_moe", QWEN | {"vocab_size": 128}, SMALL_QWEN, "qwen3_30b_a3b.eps", ("r", "r")),
    Case(
        "DeepSeek-V2",
        "deepseek_v2",
        DEEPSEEK,
        SMALL_DEEPSEEK,
        "deepseek_v2.eps",
        ("shared", "mlp"),
        ("shared.", "mlp."),
    ),
)


def model_of(family: str, fields: dict[str, Any], device: torch.device, implementation: str = "eager") -> Any:
    """A model with random weights, the same on every rank."""
    config = AutoConfig.for_model(family, **fields)
    torch.manual_seed(SEED)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE, experts_implementation=implementation)
    return model.to(device).eval().requires_grad_(False)


def released() -> None:
    """Give back the memory of what is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
