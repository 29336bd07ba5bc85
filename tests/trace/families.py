"""The MoE families of the installed transformers: their blocks, with tiny random configs, as the table in the docs has
them."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

HIDDEN = 32
TINY: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "ffn_hidden_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "expert_intermediate_size"), 24),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 40),
    **dict.fromkeys(("shared_intermediate_size", "moe_latent_size", "intermediate_size_mlp"), 40),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k", "moe_top_k"), 2),
    **dict.fromkeys(("top_k_experts", "num_selected_experts", "expert_top_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    "n_group": 4,
    "topk_group": 2,
    "num_expert_group": 4,
    "norm_topk_prob": True,
    "zero_expert_num": 2,
    "num_hash_layers": 0,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
}


@dataclass(frozen=True)
class Family:
    """A family, and its block's class, where it has one."""

    name: str
    module: str
    block: str
    decorated: bool


def folder() -> Path:
    import transformers

    return Path(transformers.__file__).parent / "models"


def families() -> list[Family]:
    """Every family whose modeling file has experts: those that transformers decorates, and those that it does not."""
    found = []
    for path in sorted(folder().glob("*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        if not re.search(r"^class \w*(Experts|SparseMLP|Moe|MoE)\w*\(", text, re.MULTILINE):
            continue
        if "topk" not in text and "top_k" not in text and "Router" not in text:
            continue
        module = f"transformers.models.{path.parent.name}.{path.stem}"
        found.append(Family(path.parent.name, module, block_of(text), "@use_experts_implementation" in text))
    return found


def block_of(text: str) -> str:
    """The class that has experts and calls them: the first that makes `self.experts` and is no experts itself."""
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ClassDef):
            continue
        source = ast.get_source_segment(text, node) or ""
        makes = re.search(r"self\.(experts|input_linear) = ", source)
        calls = re.search(r"self\.(experts|router)\(", source)
        if makes and calls and "def forward" in source and "DecoderLayer" not in node.name:
            return node.name
    return ""


def made(family: Family) -> nn.Module:
    """The block with a tiny config and random weights."""
    module = importlib.import_module(family.module)
    block = _built(module, getattr(module, family.block))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.2)
        for name, buffer in block.named_buffers():
            if "bias" in name:
                buffer.normal_(std=0.2)
    return block.float().eval()


def _built(module: Any, kind: type[nn.Module]) -> nn.Module:
    """The block by the first config class of its file that it takes: the one that it names, if it names one."""
    configs = [value for name, value in vars(module).items() if name.endswith("Config") and isinstance(value, type)]
    configs += [
        part for each in configs for part in getattr(each, "sub_configs", {}).values() if isinstance(part, type)
    ]
    parameters = inspect.signature(kind.__init__).parameters
    said = str(parameters.get("config", ""))
    needed = {name: 0 for name in ("layer_idx", "layer_id") if name in parameters}
    faults: list[Exception] = []
    for each in sorted(configs, key=lambda c: (c.__name__ not in said, "Text" not in c.__name__, c.__name__)):
        for left_out in (set(), {"num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size"}):
            try:
                torch.manual_seed(0)
                return kind(_config(each, left_out), **needed)
            except Exception as error:  # the next one may do
                faults.append(error)
    raise faults[0] if faults else LookupError("no config class")


def _config(kind: type, left_out: set[str]) -> Any:
    """A config with the tiny sizes that it knows."""
    plain = kind()
    known = {key: value for key, value in TINY.items() if hasattr(plain, key) and key not in left_out}
    config = kind(**known)
    config._experts_implementation = "eager"
    return config
