"""Whole models of transformers under `experts_implementation="epsc"`, block swap, and torch.compile's backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import epsc
from epsc.ir.errors import EpsError
from tests.trace.ranks import Ranks
from tests.trace.work import MODELS, model_of, off

pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def hf() -> Any:
    import epsc.hf

    epsc.hf.enable()
    return epsc.hf


@pytest.mark.distributed
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "qwen3_moe" else pytest.mark.slow) for name in MODELS]
)
def test_two_ranks_generate_what_eager_generates(name: str, ranks_of: Callable[[int], Ranks]) -> None:
    for eager, compiled, shared in ranks_of(2).run("generate", name):
        assert compiled == eager
        assert shared  # each rank keeps its own experts only


def test_families_that_would_stay_on_eager_are_refused(hf: Any) -> None:
    from transformers import AutoModelForCausalLM, DbrxConfig

    ffn = {"ffn_hidden_size": 24, "moe_num_experts": 8, "moe_top_k": 2, "hidden_size": 32}
    sizes: dict[str, Any] = {"d_model": 32, "n_heads": 4, "n_layers": 1, "vocab_size": 64}
    attention = {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}
    with pytest.raises(EpsError, match="it would stay on eager"):
        AutoModelForCausalLM.from_config(
            DbrxConfig(**sizes, ffn_config=ffn, attn_config=attention), experts_implementation="epsc"
        )
    model = AutoModelForCausalLM.from_config(DbrxConfig(**sizes, ffn_config=ffn, attn_config=attention)).eval()
    ids = torch.randint(0, 64, (2, 6))
    with torch.no_grad():
        wanted = model(ids).logits
        swapped = epsc.compile_model(model)
        assert any(isinstance(each, epsc.Compiled) for each in swapped.modules())
        assert off(swapped(ids).logits, wanted) < 1e-5


@pytest.mark.parametrize("name", ["_check_and_adjust_experts_implementation", "_can_set_experts_implementation"])
def test_a_transformers_that_cannot_take_experts_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import PreTrainedModel

    import epsc.hf

    monkeypatch.delattr(PreTrainedModel, name)
    with pytest.raises(EpsError, match=f"has no `PreTrainedModel.{name}`"):
        epsc.hf.enable()


def test_no_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import epsc.hf

    monkeypatch.setitem(sys.modules, "transformers.integrations.moe", None)
    with pytest.raises(EpsError, match="transformers with `experts_implementation` is needed") as caught:
        epsc.hf.enable()
    assert caught.value.diagnostics[0].help == "pip install 'epsc[hf]'"


def test_a_model_that_first_ran_in_inference_mode_runs_outside_of_it(hf: Any) -> None:
    model = model_of("olmoe", "eager")
    ids = torch.randint(1, 64, (2, 5))
    with torch.inference_mode():
        wanted = model(ids, use_cache=False).logits
        model.set_experts_implementation("epsc")
        assert off(model(ids, use_cache=False).logits, wanted) < 1e-5
    with torch.no_grad():
        assert off(model(ids, use_cache=False).logits, wanted) < 1e-5
    model.load_state_dict(model.state_dict())


def test_the_backend_captures_a_model_whole(hf: Any) -> None:
    torch._dynamo.reset()  # what other tests captured must not count here
    model = model_of("mixtral", "eager")
    ids = torch.randint(0, 64, (2, 6))
    with torch.no_grad():
        wanted = model(ids, use_cache=False).logits
        model.set_experts_implementation("epsc")
        model(ids)
        fast = torch.compile(model, backend="epsc", options={"rest": "eager"}, fullgraph=True)
        assert off(fast(ids, use_cache=False).logits, wanted) < 1e-5
        torch._dynamo.reset()
        wrong = torch.compile(model, backend="epsc", options={"rest": "fast"})
        with pytest.raises(Exception, match="the epsc backend knows no `fast`"):
            wrong(ids, use_cache=False)
    torch._dynamo.reset()
