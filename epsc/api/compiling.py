"""Compile: a module that stands in for a MoE block and runs a compiled plan, with its experts shared by ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.fx import GraphModule

from epsc import driver, plans
from epsc.api.call import Call
from epsc.api.machines import nodes_of
from epsc.api.refuse import check_module, expect_meta, refusal
from epsc.api.retell import retold
from epsc.api.running import Layer, Runner, runner
from epsc.api.state import State, opened
from epsc.api.tracing import Traced, trace
from epsc.grammar.trace.lift import LAYER
from epsc.grammar.trace.weights import Get
from epsc.ir.errors import EpsError

Load = int | tuple[int, int]
Given = Mapping[str, Tensor] | str | Path


class Compiled(nn.Module):
    """What `compile` gives: the block's signature, results and state dict; its experts are this rank's."""

    def __init__(self, traced: Traced, made: plans.Plans, around: GraphModule, found: Runner, state: State) -> None:
        super().__init__()
        self.traced = (traced.spec, traced.lifted, type(traced.module).__name__)
        self.call = Call.of(traced.module, traced.inputs.example)
        self.plans = made
        self.around = around
        self.runner_of = (found,)
        self.state = state
        state.keep(self)
        self.train(False)

    @property
    def program(self) -> str:
        """The text of the program that runs."""
        return plans.write(self.plans).text

    @property
    def most(self) -> int | None:
        """Tokens of the rank that has most in the passes to come, alike on all ranks: it decides between plans by load.
        Where it is None the ranks ask each other in every pass, and the host waits for the device."""
        return self._layer.most

    @most.setter
    def most(self, tokens: int | None) -> None:
        self._layer.most = tokens

    @property
    def _layer(self) -> Layer:
        layer = self.around.get_submodule(LAYER)
        assert isinstance(layer, Layer)
        return layer

    @property
    def text(self) -> str:
        """The layer and its schedule, as a `.eps` file."""
        return self.plans.layer.source.text

    def extra_repr(self) -> str:
        layer, ep = self.plans.layer, self.plans.parts[0].schedule.ep
        return f"{self.traced[2]} as {layer.graph.name}, schedule {self.plans.name}, ep = {ep}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            raise refusal(
                "training",
                f"{self.traced[2]} was compiled for inference, and is in training mode",
                help="call `model.eval()`",
            )
        return self.around(*self.call(args, kwargs))


@torch.inference_mode(False)  # what is made here is used outside of it, too
def compile(
    module: nn.Module,
    group: dist.ProcessGroup | None = None,
    schedule: str | None = None,
    tokens: Load | None = None,
    *,
    example_inputs: Sequence[Any] | Tensor | None = None,
    weights: Given | None = None,
    device: torch.device | str | None = None,
) -> Compiled:
    """A module that stands in for the MoE block `module`, with its experts shared by the ranks of `group`.

    `schedule`: `auto`, `auto by tokens`, directives such as `split sent, h, back by expert_group into 4`, schedules as
    a file has them, of which the first is taken, or nothing for serial.
    `tokens`: the load per rank that is planned for. `weights`: a `.safetensors` file, a folder of them or a state dict,
    for a module on the meta device: each rank reads the experts that are its own. To be called on all ranks of `group`.
    """
    ranks = ranks_of(module, group)
    check_module(module, weights_given=weights is not None)
    if weights is not None:
        expect_meta(module)
    return stand_in(trace(module, example_inputs), group, ranks, schedule, tokens, weights, device)


def stand_in(
    traced: Traced,
    group: dist.ProcessGroup | None,
    ranks: int,
    schedule: str | None,
    tokens: Load | None,
    weights: Given | None = None,
    device: torch.device | str | None = None,
) -> Compiled:
    """The module that runs a traced block."""
    traced.check_unchanged()
    at = torch.device(device) if device else traced.inputs.rows.device
    made = planned(traced, ranks, schedule, tokens, at, nodes_of(group, ranks))
    found = runner(plans.write(made), group, at, traced.dtype)
    rank = dist.get_rank(group) if ranks > 1 else 0
    state = State.of(traced, rank, ranks)
    get = state.reader(traced.module, weights)
    around = traced.wrapper()
    state.keep_behind(get)
    state.fill(around, get, at, () if weights is None else opened(weights, traced.module))
    around.set_submodule(LAYER, Layer(found, weights_of(traced, state, get, at), traced.lifted.copies))
    return Compiled(traced, made, around, found, state)


def weights_of(traced: Traced, state: State, get: Get, device: torch.device) -> dict[str, Tensor]:
    """This rank's weights of the program, by their names.

    Those of the router stay in the module's dtype, which may be a wider one: rounded, they would choose other experts.
    """
    router = traced.lifted.router.weights if traced.lifted.router else ()
    held = {}
    for each in traced.weights:
        own = state.own(each, get)
        held[each.name] = own.to(device, own.dtype if each in router else traced.dtype)
    return {name: _kept(traced, name, weight) for name, weight in held.items()}


def _kept(traced: Traced, name: str, weight: Tensor) -> Tensor:
    """The weight in memory of its own, unless it is all of what the module has: then the two share it."""
    (source, *more) = next(each.sources for each in traced.weights if each.name == name)
    known = dict([*traced.module.named_parameters(), *traced.module.named_buffers()])
    whole = known[source]
    shared = not more and weight.is_contiguous() and weight.numel() == whole.numel() and not whole.is_meta
    return weight.detach() if shared else weight.detach().clone(memory_format=torch.contiguous_format)


def planned(
    traced: Traced, ranks: int, schedule: str | None, tokens: Load | None, device: torch.device, nodes: int = 1
) -> plans.Plans:
    """The proven plans of a traced block. Raises EpsError, at the user's Python."""
    low, high = (tokens, tokens) if isinstance(tokens, int) else tokens or (1, 4096)
    low, high = low * traced.lifted.copies, high * traced.lifted.copies
    more = f"tokens {low} .. {high}\n{_schedule(schedule)}"
    layer = traced.layer(driver.Options({"ep": str(ranks), "nodes": str(nodes), "device": _device(device)}), more)
    try:
        return plans.plans(layer)
    except EpsError as error:
        raise retold(error, layer.source.text, traced.spec) from None


def _schedule(schedule: str | None) -> str:
    if not schedule or schedule == "serial":
        return "schedule serial { }"
    if schedule in ("auto", "auto by tokens"):
        return f"schedule best = {schedule}"
    return schedule if schedule.lstrip().startswith("schedule ") else f"schedule given {{\n{schedule}\n}}"


def _device(device: torch.device) -> str:
    """The device of the language that is nearest to this one."""
    if device.type != "cuda":
        return "cpu"
    name = torch.cuda.get_device_name(device).lower()
    known = next((each for each in ("h100", "h800", "a100") if each in name), None)
    return known or "h200"


def ranks_of(module: nn.Module, group: dist.ProcessGroup | None) -> int:
    """How many ranks share the experts. Raises EpsError when nobody said which."""
    if not (dist.is_available() and dist.is_initialized()):
        if group is not None:
            raise refusal("no-group", "a group was given, but torch.distributed is not initialised", module)
        return 1
    if group is None and dist.get_world_size() > 1:
        raise refusal(
            "no-group",
            f"{dist.get_world_size()} ranks run, and nobody said which of them share the experts",
            module,
            "give `group=torch.distributed.group.WORLD`, or a group of this rank alone",
        )
    return dist.get_world_size(group)
