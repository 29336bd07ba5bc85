"""Hypothesis strategies: small random layers and schedules, as `.eps` text."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(frozen=True)
class Case:
    """A file with one layer and one schedule `s`, and what to run it on."""

    text: str
    ep: int
    tokens: tuple[int, ...]
    routing: str
    seed: int


@st.composite
def routers(draw: st.DrawFn, experts: int, threshold: bool = False) -> str:
    """`experts=.., top_k=.., ...` with every option that `route` has; `threshold` if that is wanted."""
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if experts % g == 0 and experts // g >= 2] or [1]))
    top_groups = draw(st.integers(1, groups))
    top_k = draw(st.integers(1, min(4, experts // groups * top_groups)))
    options = [f"experts={experts}", f"top_k={top_k}", f"score={draw(st.sampled_from(('softmax', 'sigmoid')))}"]
    options.append(f"choose={draw(st.sampled_from(('by_score', 'by_logit')))}")
    if groups > 1:
        options += [f"groups={groups}", f"top_groups={top_groups}"]
        options.append(f"group_by={draw(st.sampled_from(('max', 'top2')))}")
    options += [f"{name}=true" for name in ("choice_bias", "bias") if draw(st.booleans())]
    options += draw(st.sampled_from(([], ["renorm=true"], ["weighted=false"])))
    if draw(st.booleans()):
        options.append("scale=2.5")
    if threshold:
        options.append(f"threshold={draw(st.sampled_from((0.05, 0.2, 0.4)))}")
    return ", ".join(options)


@st.composite
def ffns(draw: st.DrawFn, hidden: int) -> tuple[str, str, str]:
    """The activation applied to the first gemm, that gemm's width, and options that both gemms share."""
    width = 8 * draw(st.integers(1, 4))
    gated = draw(st.booleans())
    fn = draw(
        st.sampled_from(("swiglu", "geglu", "geglu_tanh") if gated else ("relu", "relu2", "silu", "gelu", "gelu_tanh"))
    )
    extra = ""
    if draw(st.booleans()):
        extra += ", limit=0.5"
    if gated and draw(st.booleans()):
        extra += ", interleaved=true, offset=1.0"
    if fn == "swiglu" and draw(st.booleans()):
        extra += ", alpha=1.702"
    if fn == "swiglu" and draw(st.booleans()):
        extra += ", gate_softcap=0.5, up_softcap=2.0"
    both = "".join(f", {name}=true" for name in ("bias", "transposed") if draw(st.booleans()))
    return f"{fn}(%s{extra})", f"{width * (2 if gated else 1)}", both


@st.composite
def collectives(draw: st.DrawFn, i: int, local: int, hidden: int, selective: bool) -> list[str]:
    """How branch `i`, whose rows an all2all moves, is cut and computed; `local`: experts of a rank. One that is
    `selective` sends some copies only."""
    found = []
    axes = ("expert_group", "none") if selective else ("expert_group", "tokens", "peer", "none")
    axis = draw(st.sampled_from(axes))
    if axis == "peer":
        found.append(
            f"split {draw(st.sampled_from((f'sent{i}, h{i}', f'sent{i}, up{i}', f'sent{i}')))} by peer into ep"
        )
    home_by_columns = axis in ("peer", "none") and draw(st.booleans())
    if home_by_columns:
        found.append(f"split back{i} by columns into {draw(st.sampled_from((2, hidden // 8)))}")
    elif axis in ("expert_group", "tokens"):
        count = draw(st.integers(1, local if axis == "expert_group" else 5))
        found.append(f"split sent{i}, h{i}, back{i} by {axis} into {count}")
    impl = draw(
        st.sampled_from(
            (
                "grouped",
                "dense",
                "batched",
                "batched for T when max_rows <= 4 else grouped",
                "grouped for T when mean_rows < 3 else dense",
                "dense for T when rows < 2 else batched for T when tokens > 5 else grouped",
            )
        )
    )
    impl = impl.replace(" for T", "")
    first, _, rest = impl.partition(" when ")
    found.append(f"use {first} for up{i}, down{i}{f' when {rest}' if rest else ''}")
    if axis == "none" and not home_by_columns and draw(st.booleans()):  # such weights come for whole products
        names = draw(st.sampled_from((f"up{i}", f"down{i}", f"up{i}, down{i}")))
        found.append(f"offload {names} into {draw(st.integers(1, 3))} slots")
    if draw(st.booleans()):
        found.append(f"reserve 16 sms for sent{i}, back{i}")
    return found


@st.composite
def one_sided(draw: st.DrawFn, i: int, transport: str, local: int, hidden: int, persistent: bool) -> list[str]:
    """How branch `i`, whose rows ranks store into each other's memory, is placed and computed."""
    found = [f"use {transport} for sent{i}", f"use put for back{i}"]
    found += [said for said in (f"dedup sent{i}", f"local_reduce back{i}") if draw(st.booleans())]
    groups = f"by expert_group into {draw(st.integers(1, local))}" if persistent else ""
    if draw(st.booleans()):
        found.append(f"split back{i} by columns into {draw(st.sampled_from((2, hidden // 8)))}")
    elif groups and f"local_reduce back{i}" not in found:
        found.append(f"split back{i} {groups}")
    if groups and draw(st.booleans()):
        found.append(f"split sent{i}, h{i} {groups}")
    if draw(st.booleans()):
        found.append(f"room 4 for sent{i}")  # as many as can come: to 4 ranks at most, of 20 tokens each
    both = f"sent{i}, back{i}"
    reserved = draw(st.sampled_from(("", f"back{i}", *((f"sent{i}", both) if transport == "put" else ()))))
    if reserved:
        found.append(f"reserve 16 sms for {reserved}")
    lanes = (f"run sent{i} on links", f"run back{i} on links") if reserved != both else ()  # they take turns on one
    beside = draw(st.sampled_from(("", f"run r{i} beside sent{i}", *lanes)))
    return [*found, beside] if beside else found


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A layer with one or two routed branches and sometimes a shared one, and a schedule that the types allow."""
    ep = draw(st.sampled_from((2, 3, 4)))
    hidden = draw(st.sampled_from((16, 32)))
    dtype = draw(st.sampled_from(("fp32", "bf16")))
    body, terms, directives = [], [], []
    for i in range(draw(st.sampled_from((1, 1, 1, 2)))):
        local = draw(st.integers(1, 5))
        act, width, both = draw(ffns(hidden))
        # Copies that go nowhere: for experts of others, or below a threshold.
        first, behind = draw(st.sampled_from(((0, 0), (0, 0), (0, 2), (3, 1))))
        threshold = draw(st.sampled_from((False, False, True)))
        ranged = f", first={first}, experts={local * ep}" if first + behind else ""
        body += [
            f"r{i} = route(x, {draw(routers(first + local * ep + behind, threshold))})",
            f"sent{i} = dispatch(x, r{i}{ranged})",
            f"h{i} = {act % f'gemm(sent{i}, up{i}, {width}{both})'}",
            f"back{i} = combine(gemm(h{i}, down{i}, {hidden}{both}), r{i})",
        ]
        terms.append(f"back{i}")
        if behind and draw(st.booleans()):
            terms.append(f"identity(x, r{i}, first={first + local * ep})")
        selective = bool(ranged) or threshold
        transport = draw(st.sampled_from(("all2all", "all2all", *(() if selective else ("put", "copy")))))
        if transport == "all2all":
            directives += draw(collectives(i, local, hidden, selective))
        else:
            # What the kernel can run that alone can begin at a group of experts.
            directives += draw(one_sided(i, transport, local, hidden, dtype == "bf16" and not both))
    if draw(st.booleans()):
        body.append("shared = mlp(x, swiglu, 24)")
        terms.append("shared" if draw(st.booleans()) else "sigmoid(gemm(x, gate, 1)) * shared")
        if draw(st.booleans()):
            directives.append("run shared beside sent0")
    if draw(st.booleans()):
        terms.append("x")
    if draw(st.integers(0, 9)) == 0:
        directives.append("overlap none")
    text = [f"layer random(x: {dtype}[tokens, {hidden}]) {{", *body, f"return {' + '.join(terms)}", "}"]
    if draw(st.integers(0, 4)) == 0:
        text += [f"layer twice(x: {dtype}[tokens, {hidden}]) {{ return stack(random, x, 2) }}"]
    # Room for the tokens of each rank, for rows that travel one-sided.
    text += [f"cluster c {{ device = h200 ep = {ep} }}", "tokens 0 .. 20", "schedule s {", *directives, "}"]
    tokens = draw(st.tuples(*[st.one_of(st.integers(0, 3), st.integers(0, 20))] * ep))
    routing = draw(st.sampled_from(("random", "one", "shunned", "skewed")))
    return Case("\n".join(text), ep, tokens, routing, draw(st.integers(0, 1000)))
