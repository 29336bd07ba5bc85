"""Schedules for tests of the machine model and of pictures: written as text, as `Schedule.parse` reads it."""

from __future__ import annotations

from dataclasses import replace

from epsc.ir.schedule import HOST_LANE, Hazard, Schedule, Stage, Wait
from epsc.machine.needs import waits_of


def _graph(hidden: int, inter: int, experts: int, top_k: int) -> str:
    sent, home = f"bf16[rows(sent), {hidden}]", f"bf16[{top_k}*tokens, {hidden}]"
    of = f"experts={experts}, top_k={top_k}"
    return f"""graph layer(x: bf16[tokens, {hidden}]) -> y {{
  param r.weight: bf16[{experts}, {hidden}]
  param gate_up: bf16[{experts}, {2 * inter}, {hidden}] sharded ep
  param down: bf16[{experts}, {hidden}, {inter}] sharded ep
  param shared_up: bf16[{4 * inter}, {hidden}]
  param shared_down: bf16[{hidden}, {2 * inter}]
  r = route(x; {of}) using r.weight of r : int64[tokens, {top_k}] | fp32[tokens, {top_k}]
  sent.layout = layout(r.experts; {of}) of sent : int64[{top_k}*tokens] | int64[{top_k}*tokens] | int64[{experts}]
  sent.exchange = exchange(sent.layout.counts; direction=dispatch, {of}) of sent : int64[{experts}]
  sent.permute = permute(x, sent.layout.order; {of}) of sent : {home}
  sent.sizes = sizes(sent.layout.counts, sent.exchange; {of}) of sent : int64[{2 * experts}]
  sent.all2all = all2all(sent.permute, sent.sizes; direction=dispatch, {of}) of sent : {sent}
  sent.arrange = arrange(sent.exchange, sent.sizes; {of}) of sent : int64[rows(sent)] | int32[{experts}]
  sent = regroup(sent.all2all, sent.arrange.index; {of}) of sent : {sent}
  up = expert_gemm(sent, sent.arrange.ends; experts={experts}, out={2 * inter}) using gate_up of up : bf16[rows(sent), {2 * inter}]
  h = activation(up; fn=swiglu) of h : bf16[rows(sent), {inter}]
  down = expert_gemm(h, sent.arrange.ends; experts={experts}, out={hidden}) using down of down : {sent}
  back.ungroup = ungroup(down, sent.arrange.index; {of}) of back : {sent}
  back.all2all = all2all(back.ungroup, sent.sizes; direction=combine, {of}) of back : {home}
  back = unpermute_sum(back.all2all, sent.layout.place, r.weights; {of}) of back : bf16[tokens, {hidden}]
  mlp.up = gemm(x; out={4 * inter}) using shared_up of mlp : bf16[tokens, {4 * inter}]
  mlp.act = activation(mlp.up; fn=swiglu) of mlp : bf16[tokens, {2 * inter}]
  mlp = gemm(mlp.act; out={hidden}) using shared_down of mlp : bf16[tokens, {hidden}]
  y = add(back, mlp) of y : bf16[tokens, {hidden}]
}}"""  # noqa: E501


def eps(
    groups: int = 5,
    sms: int = 16,
    ep: int = 8,
    *,
    hidden: int = 5120,
    inter: int = 1536,
    experts: int = 160,
    top_k: int = 6,
    chip: int = 132,
    transfer: str = "nccl",
    stage: Stage = Stage.SYNCED,
    overlap: bool = True,
) -> Schedule:
    """EPS-MoE's schedule of DeepSeek-V2's layer: expert groups, transfers on `sms` SMs beside GEMMs on the others."""
    gemm_sms = chip - sms if sms else 0
    comm = "comm" if overlap else "comp"
    chunks = [f"expert_group:{i}/{groups}" for i in range(groups)]

    def at(name: str, i: int) -> str:
        return f"{name}[{chunks[i]}]" if groups > 1 else name

    def step(name: str, impl: str, lane: str, reads: str, writes: str, sms: int = 0) -> str:
        via = "; via ep" if impl == transfer else ""
        limit = f"; sms {sms}" if sms else ""
        return f"  step {name} = {impl}; on {lane}{via}{limit}; reads {reads}; writes {writes}"

    def dispatch(i: int) -> str:
        reads = f"{at('sent.permute', i)}, sent.sizes"
        return step(at("sent.all2all", i), transfer, comm, reads, at("sent.all2all", i), sms)

    def experts_of(i: int) -> list[str]:
        sent, up, h, down = at("sent", i), at("up", i), at("h", i), at("down", i)
        ends = "sent.arrange.ends"
        return [
            step(sent, "torch", "comp", f"{at('sent.all2all', i)}, sent.arrange.index", sent, gemm_sms),
            step(up, "grouped when mean_rows < 2048 else dense", "comp", f"{sent}, {ends}", up, gemm_sms),
            step(h, "torch", "comp", up, h, gemm_sms),
            step(down, "grouped when mean_rows < 2048 else dense", "comp", f"{h}, {ends}", down, gemm_sms),
            step(
                at("back.ungroup", i),
                "torch",
                "comp",
                f"{down}, sent.arrange.index",
                at("back.ungroup", i),
                gemm_sms,
            ),
        ]

    def combine(i: int) -> str:
        reads = f"{at('back.ungroup', i)}, sent.sizes"
        return step(at("back.all2all", i), transfer, comm, reads, at("back.all2all", i), sms)

    body = [
        step("r", "torch", "comp", "x", "r.experts, r.weights"),
        step(
            "sent.layout",
            "torch",
            "comp",
            "r.experts",
            "sent.layout.order, sent.layout.place, sent.layout.counts",
        ),
        step("sent.exchange", transfer, comm, "sent.layout.counts", "sent.exchange", sms),
        step("sent.permute", "torch", "comp", "x, sent.layout.order", "sent.permute", gemm_sms),
        step("sent.sizes", "pinned", HOST_LANE, "sent.layout.counts, sent.exchange", "sent.sizes"),
        dispatch(0),
        step(
            "sent.arrange",
            "torch",
            "comp",
            "sent.exchange, sent.sizes",
            "sent.arrange.index, sent.arrange.ends",
        ),
        step("mlp.up", "torch", "comp", "x", "mlp.up", gemm_sms),
        step("mlp.act", "torch", "comp", "mlp.up", "mlp.act", gemm_sms),
        step("mlp", "torch", "comp", "mlp.act", "mlp", gemm_sms),
    ]
    for i in range(groups):
        if i + 1 < groups:
            body.append(dispatch(i + 1))
        body += [*experts_of(i), combine(i)]
    body += [
        step("back", "torch", "comp", "back.all2all, sent.layout.place, r.weights", "back"),
        step("y", "torch", "comp", "back, mlp", "y"),
    ]
    lanes = ["  lane comp: compute priority 0", "  lane host: host priority 0"]
    if overlap:
        lanes.append("  lane comm: transfer priority -1")
    text = "\n".join(
        [
            _graph(hidden, inter, experts, top_k),
            f"schedule eps{groups}: ep {ep}, sms {chip}, stage ordered {{",
            *lanes,
            *body,
            "}",
        ]
    )
    schedule = Schedule.parse(text)
    return synced(schedule) if stage >= Stage.SYNCED else schedule


def synced(schedule: Schedule) -> Schedule:
    """The schedule with a wait for each step of another lane that makes what a step reads."""
    needs = waits_of(schedule)
    steps = []
    for step in schedule.steps:
        makers = [schedule.step[key] for key in needs[step.key] if schedule.step[key].lane != step.lane]
        waits = [
            Wait(maker.key, next(w.value for w in maker.writes if w.value in {r.value for r in step.reads}), Hazard.RAW)
            for maker in makers
        ]
        steps.append(replace(step, waits=tuple(waits)))
    return replace(schedule, stage=Stage.SYNCED, steps=tuple(steps))
