"""Hugging Face transformers: `experts_implementation="epsc"`.

    import epsc.hf

    epsc.hf.enable(group)
    model = AutoModelForCausalLM.from_pretrained(name, experts_implementation="epsc")

A model of a family that reads no `experts_implementation` is refused: it would stay on eager, and nobody would see it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from epsc import plans
from epsc.api.backend import backend
from epsc.api.compiling import Load, planned, ranks_of, weights_of
from epsc.api.machines import nodes_of
from epsc.api.refuse import refusal
from epsc.api.running import Layer, runner
from epsc.api.state import State
from epsc.api.tracing import Traced, fingerprint, trace
from epsc.grammar.trace.seam import EXPERTS, add_site

NAME = "epsc"
SITE = "_epsc_site"


@dataclass(frozen=True)
class Settings:
    """What `enable` was told."""

    group: dist.ProcessGroup | None = None
    schedule: str | None = None
    tokens: Load | None = None


_settings = Settings()
_known: dict[object, Traced] = {}


def enable(group: dist.ProcessGroup | None = None, schedule: str | None = None, tokens: Load | None = None) -> None:
    """Register the implementation. Experts are shared by the ranks of `group`; a layer is compiled when it first runs.

    `schedule` and `tokens` are those of `epsc.compile`.
    """
    global _settings
    ExpertsInterface, PreTrainedModel = _transformers()
    _settings = Settings(group, schedule, tokens)
    if NAME not in torch._dynamo.list_backends():
        # Where the package's entry points are not those of this version, as in a checkout that was installed before.
        torch._dynamo.register_backend(backend, name=NAME)
    ExpertsInterface.register(NAME, experts_forward)
    adjust = PreTrainedModel._check_and_adjust_experts_implementation
    if not hasattr(adjust, "__wrapped__"):
        PreTrainedModel._check_and_adjust_experts_implementation = _refusing(adjust)


USED = ("_check_and_adjust_experts_implementation", "_can_set_experts_implementation")
"""Of the class of all models: what is no promise of transformers."""


def _transformers() -> tuple[Any, Any]:
    """What experts are registered with, and the class of all models. Raises EpsError for a version that has neither."""
    try:
        import transformers  # noqa: PLC0415 - an optional package
        from transformers.integrations.moe import ExpertsInterface  # noqa: PLC0415
        from transformers.modeling_utils import PreTrainedModel  # noqa: PLC0415
    except ImportError as error:
        message = f"transformers with `experts_implementation` is needed: {error}"
        raise refusal("no-transformers", message, help="pip install 'epsc[hf]'") from None
    missing = [name for name in USED if not hasattr(PreTrainedModel, name)]
    if missing or not hasattr(ExpertsInterface, "register"):
        what = f"`PreTrainedModel.{missing[0]}`" if missing else "`ExpertsInterface.register`"
        raise refusal(
            "other-transformers",
            f"transformers {transformers.__version__} has no {what}: epsc does not know how to hand it experts",
            help="5.17 to 5.23 are known to work; `epsc.compile_model(model.eval(), group)` needs none of it",
        )
    return ExpertsInterface, PreTrainedModel


def _refusing(adjust: Any) -> Any:
    """The check of an implementation, which now also refuses a model that would not use this one."""

    @wraps(adjust)
    def check(self: Any, experts_implementation: str | None) -> Any:
        chosen = adjust(self, experts_implementation)
        if chosen == NAME and not self._can_set_experts_implementation() and has_experts(self.config):
            raise refusal(
                "stays-eager",
                f"{type(self).__name__} does not read `experts_implementation`: it would stay on eager",
                help="load it without, and swap its blocks: `epsc.compile_model(model.eval(), group)`",
            )
        return chosen

    return check


def has_experts(config: Any) -> bool:
    """Whether a model of this config has MoE blocks, by the numbers in it."""
    values = dict(vars(config))
    for part in list(values.values()):
        values |= vars(part) if hasattr(part, "to_dict") and type(part).__name__.endswith("FFNConfig") else {}
    return any(
        re.search(r"(^|_)(num|n)_(\w+_)?experts$", name) and isinstance(value, int) and value > 1
        for name, value in values.items()
    )


def experts_forward(self: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """What transformers calls for every experts module."""
    if getattr(self, SITE, None) is None:
        prepare(self, hidden, ids)
    made: Tensor = EXPERTS(hidden, ids, weights, getattr(self, SITE))
    return made


@torch._dynamo.disable  # type: ignore[untyped-decorator]
@torch.inference_mode(False)  # what is made here is used outside of it, too
def prepare(experts: nn.Module, hidden: Tensor, ids: Tensor) -> None:
    """Compile the experts of one layer. On all ranks of the group at the same time."""
    ranks = ranks_of(experts, _settings.group)
    traced = _traced(experts, hidden.shape[-1], ids.shape[-1])
    nodes = nodes_of(_settings.group, ranks)
    made = planned(traced, ranks, _settings.schedule, _settings.tokens, hidden.device, nodes)
    found = runner(plans.write(made), _settings.group, hidden.device, traced.dtype)
    state = State.of(traced, dist.get_rank(_settings.group) if ranks > 1 else 0, ranks)
    layer = Layer(found, weights_of(traced, state, state.reader(traced.module, None), hidden.device))
    for weight in traced.weights:
        # The module keeps no more than this rank's experts either.
        (name,) = {piece.names[0] for piece in weight.pieces}
        parameter = layer.get_parameter(found.table[weight.name])
        if parameter.data_ptr() != traced.module.get_parameter(name).data_ptr():
            experts.register_parameter(name.removeprefix("experts."), parameter)
    object.__setattr__(experts, SITE, add_site(layer))


def _traced(experts: nn.Module, hidden: int, top_k: int) -> Traced:
    """The experts of one layer as a layer of the language that is given its routing."""
    block = Routed(experts)
    state = fingerprint(block)
    kind = (state, hidden, top_k)
    if kind not in _known:
        dtype = next(p.dtype for p in experts.parameters() if p.is_floating_point())
        device = next(experts.parameters()).device
        count = int(getattr(experts, "num_experts", 0)) or max(p.shape[0] for p in experts.parameters())
        rows = max(count, 8)
        ids = (torch.arange(rows, device=device).unsqueeze(1) + torch.arange(top_k, device=device)) % count
        example = (torch.zeros(rows, hidden, dtype=dtype, device=device), ids)
        name = re.sub(r"\W", "_", type(experts).__name__).lower()
        with _eager(experts):
            _known[kind] = trace(block, (*example, torch.zeros(rows, top_k, dtype=dtype, device=device)), name=name)
    if not _known[kind].lifted.ffn.plain or _known[kind].lifted.ffn.weighing.sigmoid:
        what = f"the weights that {type(experts).__name__} is given do not multiply what a layer of the language makes"
        raise refusal("other-weights", what, experts, "swap the blocks: `epsc.compile_model(model.eval(), group)`")
    return Traced(**{**vars(_known[kind]), "module": block, "before": state})


class Routed(nn.Module):
    """Experts by transformers' own eager code, as a block that is given its routing."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts
        self.training = False

    def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        made: Tensor = self.experts(hidden, ids, weights)
        return made


@contextmanager
def _eager(experts: nn.Module) -> Iterator[None]:
    """While this lasts, transformers runs its own code."""
    config: Any = getattr(experts, "config", None)
    if not hasattr(config, "_experts_implementation_internal"):
        raise refusal(
            "other-transformers",
            f"{type(experts).__name__} has no config that says which implementation its experts take",
            experts,
            "`epsc.compile_model(model.eval(), group)` needs none",
        )
    before = config._experts_implementation_internal
    config._experts_implementation_internal = "eager"
    try:
        yield
    finally:
        config._experts_implementation_internal = before
