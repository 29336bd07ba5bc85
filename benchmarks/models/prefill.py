"""The prefill of a whole model, by everybody who can."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.distributed import DistributedConfig

import epsc
import epsc.hf
from benchmarks.models.cases import GROUPED, ONE_SIDED, QWEN, SMALL_QWEN, model_of, released
from benchmarks.models.table import Table
from epsc.bench.contender import Contender
from epsc.bench.measure import measure
from epsc.bench.ranks import Ranks
from epsc.bench.reference import error


def expert_parallel(model: Any, ranks: Ranks) -> Any:
    """A copy of the model by transformers' own expert parallelism, in which all ranks compute the same tokens."""
    newer = "ep_size" in DistributedConfig.__dataclass_fields__
    # Newer versions share experts only beside tensor parallelism of the rest.
    asked: dict[str, Any] = {"ep_size": ranks.world} if newer else {"enable_expert_parallel": True}
    config = DistributedConfig(tp_size=ranks.world, **asked)
    made = copy.deepcopy(model)
    # What from_pretrained does, without a checkpoint.
    config, _, mesh = type(made).prepare_distribute_model(config)
    made = type(made).maybe_distribute_model(made, config, mesh)
    local = {p.to_local().shape[0] for n, p in made.named_parameters() if "experts" in n}
    if local != {model.config.num_experts // ranks.world}:
        raise RuntimeError(f"experts were not shared: {local} of them are on this rank")
    return made


def whole(ranks: Ranks, table: Table, sequences: int, length: int, small: bool, rounds: int) -> None:
    """The prefill of a model, by everybody who can."""
    fields = {**(SMALL_QWEN if small else QWEN), "num_hidden_layers": 4}
    base = model_of("qwen3_moe", fields, ranks.device)
    torch.manual_seed(1000 + ranks.rank)
    ids = torch.randint(0, fields["vocab_size"], (sequences, length), device=ranks.device)
    tokens = sequences * length
    group = dist.group.WORLD if ranks.world > 1 else None

    def states(model: Any, given: Tensor) -> Tensor:
        found: Tensor = model.model(given, use_cache=False).last_hidden_state
        return found

    exact = copy.deepcopy(base).float()
    with torch.no_grad():
        wanted = states(exact, ids).clone()
    del exact
    released()

    models: dict[str, tuple[Any, Tensor]] = {}
    grouped = copy.deepcopy(base)
    grouped.set_experts_implementation(GROUPED)
    models["grouped_mm, a replica per GPU"] = grouped, ids

    def swapped() -> None:
        made = epsc.compile_model(copy.deepcopy(base), group, ONE_SIDED.format("r"), (1, tokens))
        models["epsc.compile_model"] = made, ids

    def implemented() -> None:
        schedule = "use copy for sent  use put for back  local_reduce back"
        epsc.hf.enable(group, schedule, (1, tokens))
        made = copy.deepcopy(base)
        made.set_experts_implementation("epsc")
        with torch.no_grad():
            states(made, ids)
        models['experts_implementation="epsc"'] = made, ids

    def theirs() -> None:
        every = [torch.empty_like(ids) for _ in range(ranks.world)]
        dist.all_gather(every, ids)
        models["transformers' expert parallelism"] = expert_parallel(grouped, ranks), torch.cat(every)

    table.attempt("the model by compile_model", 20, swapped)
    table.attempt("the model by experts_implementation", 15, implemented)
    if ranks.world > 1:
        table.attempt("the model by transformers' expert parallelism", 25, theirs)
    released()

    errors: dict[str, float] = {}
    mine = slice(ranks.rank * sequences, (ranks.rank + 1) * sequences)
    with torch.no_grad():
        for name, (model, given) in models.items():
            made = states(model, given)
            own = made[mine] if len(given) > sequences else made
            errors[name] = max(ranks.everyone(error(own.float(), wanted)))
            del made, own
    limit = 1.25 * next(iter(errors.values()))
    for name, off in errors.items():
        if not 0 < off <= limit:
            table.fail(f"the model, {name}: hidden states are off by {off:.2e}, and may be by {limit:.2e}")
    del wanted
    calls: dict[str, Callable[[Tensor], object]] = {
        name: lambda _, m=model, g=given: m(g, logits_to_keep=1, use_cache=True).logits
        for name, (model, given) in models.items()
    }
    if ranks.device.type == "cuda" and (known := models.get("epsc.compile_model")):
        # As it is, the host of a model issues launch by launch; a graph is what a server would run.
        replay: list[Callable[[Tensor], Any]] = []
        if table.attempt(
            "the model by compile_model, as a CUDA graph",
            10,
            lambda: replay.append(epsc.capture(known[0], ids, logits_to_keep=1, use_cache=False)),
        ):
            calls["epsc.compile_model, CUDA graph"] = replay[0]
            models["epsc.compile_model, CUDA graph"] = known
    with torch.no_grad():
        samples = measure(ranks, [Contender(name, call) for name, call in calls.items()], [ids], rounds, 3)
    every_token = dict.fromkeys(calls, tokens * ranks.world)
    head = f"Qwen3-30B-A3B, 4 layers, prefill of {sequences} x {length} tokens per rank, {ranks.world} ranks"
    table.figures(head, samples, errors, every_token)
