"""The MoE families of the installed transformers: their blocks, with tiny random configs, as the table in the docs has
them."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from epsc.grammar.trace.twin import dtype_of
from epsc.hf import Routed

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
    "expert_capacity": 6,
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
    """A family: its block's class, or where a layer of the model does what blocks do, only that of its experts."""

    name: str
    module: str
    block: str
    experts: str
    """The class that transformers decorates, if there is one."""


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
        decorated = re.search(r"^@use_experts_implementation.*\n(?:@.*\n)*class (\w+)", text, re.MULTILINE)
        found.append(Family(path.parent.name, module, block_of(text), decorated[1] if decorated else ""))
    return found


def block_of(text: str) -> str:
    """The class that has experts and calls them: the first that makes `self.experts` and is no experts itself."""
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ClassDef):
            continue
        source = ast.get_source_segment(text, node) or ""
        makes = re.search(r"self\.(experts|input_linear) = ", source)
        calls = re.search(r"self\.(experts|router)\(", source)
        if makes and calls and "def forward" in source and not node.name.endswith(("DecoderLayer", "TextLayer")):
            return node.name
    return ""


def made(family: Family) -> nn.Module:
    """The block with a tiny config and random weights; where there is none, the experts, which are given a routing."""
    module = importlib.import_module(family.module)
    block = _built(module, getattr(module, family.block or family.experts))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.2)
        for name, buffer in block.named_buffers():
            if "bias" in name:
                buffer.normal_(std=0.2)
    return (block if family.block else Routed(block)).float().eval()


def halved(family: Family) -> nn.Module:
    """The block in bf16 as transformers would load it: some parameters stay in fp32, by the names that a model says."""
    kinds = vars(importlib.import_module(family.module)).values()
    kept = {name for kind in kinds for name in getattr(kind, "_keep_in_fp32_modules_strict", None) or ()}
    block = made(family).bfloat16()
    for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
        if any(re.search(rf"(^|\.){re.escape(each)}($|\.)", f"mlp.{name}") for each in kept):
            tensor.data = tensor.data.float()
    return block


def arguments(block: nn.Module, tokens: int) -> tuple[Tensor, ...]:
    """What the block is called with: tokens, and their ids where a router reads them; or tokens and a routing."""
    if isinstance(block, Routed):
        ids = torch.rand(tokens, 8).argsort(-1)[:, :2]
        return torch.randn(tokens, HIDDEN), ids, torch.rand(tokens, 2)
    x = torch.randn(2, tokens, HIDDEN)
    reads_ids = "input_ids" in inspect.signature(block.forward).parameters
    return (x, torch.randint(0, 64, (2, tokens))) if reads_ids else (x,)


def apart(block: nn.Module, compiled: nn.Module, tokens: int) -> float:
    """How far a compiled block is from what it stands in for, over the largest value: in fp32, and in 16 bits row by
    row from the block or from the block in fp32 on the same numbers, because a router that rounds its logits may choose
    the other of two close experts."""
    dtype = dtype_of(block)
    wide = copy.deepcopy(block).float()
    given = tuple(t.to(dtype) if t.is_floating_point() else t for t in arguments(block, tokens))
    with torch.no_grad():
        made, wanted, exact = (
            [t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor) and t.numel()]
            for out in (
                compiled(*given),
                block(*given),
                wide(*(t.float() if t.is_floating_point() else t for t in given)),
            )
        )
    rows, worst = given[0].shape[:-1].numel(), 0.0
    for m, w, e in zip(made, wanted, exact, strict=True):
        assert m.shape == w.shape and m.dtype == w.dtype
        m, w, e = (t.float().reshape(rows if t.numel() % rows == 0 else 1, -1) for t in (m, w, e))
        error = torch.minimum((m - w).abs().amax(1), (m - e).abs().amax(1)).max() / w.abs().max()
        worst = max(worst, float(torch.nan_to_num(error, nan=torch.inf)))
    return worst


LEFT_OUT = (
    frozenset[str](),
    frozenset({"num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"}),
    frozenset({"num_experts_per_tok"}),
)
"""What a config class may not take beside the rest."""


def _built(module: Any, kind: type[nn.Module]) -> nn.Module:
    """The block by the first config class of its file that it takes: the one that it names, if it names one."""
    configs = [value for name, value in vars(module).items() if name.endswith("Config") and isinstance(value, type)]
    configs += [
        part for each in configs for part in getattr(each, "sub_configs", {}).values() if isinstance(part, type)
    ]
    parameters = inspect.signature(kind.__init__).parameters
    said = str(parameters.get("config", ""))
    needed = {name: 0 for name in ("layer_idx", "layer_id") if name in parameters}
    needed |= {name: TINY[name] for name in parameters if name in TINY and parameters[name].default is inspect._empty}
    faults: list[Exception] = []
    for each in sorted(configs, key=lambda c: ("Text" not in c.__name__, c.__name__ not in said, c.__name__)):
        for left_out in LEFT_OUT:
            try:
                torch.manual_seed(0)
                return kind(_config(each, left_out), **needed)
            except Exception as error:  # the next one may do
                faults.append(error)
    raise faults[0] if faults else LookupError("no config class")


def _config(kind: type, left_out: frozenset[str]) -> Any:
    """A config with the tiny sizes that it knows."""
    plain = kind()
    known = {}
    for key in TINY.keys() - left_out:
        try:
            value = getattr(plain, key)
        except (AttributeError, RuntimeError):  # it has none, or one for each layer
            continue
        known[key] = [TINY[key]] * len(value) if isinstance(value, list) else TINY[key]
    config = kind(**known)
    config._experts_implementation = "eager"
    return config
