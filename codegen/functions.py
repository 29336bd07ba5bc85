"""Functions: routers and activations, each written for what this layer asks, without branches for what it does not."""

from __future__ import annotations

from dataclasses import dataclass

from epsc.codegen.lines import WIDTH
from epsc.ir.attrs import Act, ActAttrs, Choose, GroupBy, RouteAttrs, Score


@dataclass(frozen=True)
class Function:
    """A function of the program: its parameters, its docstring and its body, indented by 4."""

    name: str
    parameters: tuple[str, ...]
    result: str
    doc: str
    body: tuple[str, ...]

    @property
    def doc_lines(self) -> tuple[str, ...]:
        """The docstring, indented by 4."""
        first, *more = self.doc.split("\n")
        if not more:
            return (f'    """{first}"""',)
        return (f'    """{first}', *(f"    {line}".rstrip() for line in more), '    """')

    @property
    def head(self) -> tuple[str, ...]:
        flat = f"def {self.name}({', '.join(self.parameters)}) -> {self.result}:"
        if len(flat) <= WIDTH:
            return (flat,)
        return (f"def {self.name}(", f"    {', '.join(self.parameters)}", f") -> {self.result}:")


def route_function(name: str, a: RouteAttrs) -> Function:
    """The router of `a`: score, choose, weigh."""
    parameters = ["x: Tensor", "weight: Tensor"]
    if a.bias:
        parameters.append("bias: Tensor")
    if a.choice_bias:
        parameters.append("choice_bias: Tensor")
    body = [f"logits = router_logits(x, weight){' + bias.float()' if a.bias else ''}"]
    scores = "logits"
    if a.choose is Choose.BY_SCORE:
        body.append(f"scores = {_score('logits', a)}")
        scores = "scores"
    choice = scores
    if a.choice_bias:
        body.append(f"choice = {scores} + choice_bias.float()")
        choice = "choice"
    if a.groups > 1:
        size = a.experts // a.groups
        body.append(f"grouped = {choice}.view(-1, {a.groups}, {size})")
        if a.group_by is GroupBy.MAX or size == 1:
            body.append("group_scores = grouped.amax(-1)")
        else:
            body.append("group_scores = grouped.topk(2, dim=-1).values.sum(-1)")
        body += [
            f"kept = group_scores.topk({a.top_groups}, dim=-1).indices",
            "dropped = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, kept, False)",
            f"choice = grouped.masked_fill(dropped.unsqueeze(-1), -torch.inf).view(-1, {a.experts})",
        ]
        choice = "choice"
    if choice == scores:
        body.append(f"chosen, experts = {scores}.topk({a.top_k}, dim=-1)")
    else:
        body += [f"experts = {choice}.topk({a.top_k}, dim=-1).indices", f"chosen = {scores}.gather(1, experts)"]
    weights = "chosen" if a.choose is Choose.BY_SCORE else _score("chosen", a)
    if a.threshold > 0:
        if weights != "chosen":
            body.append(f"chosen = {weights}")
            weights = "chosen"
        body += [
            f"dropped = chosen < {a.threshold!r}",
            "experts, chosen = experts.masked_fill(dropped, -1), chosen.masked_fill(dropped, 0.0)",
        ]
    if not a.weighted:
        weights = "torch.ones_like(chosen)" + (".masked_fill(dropped, 0.0)" if a.threshold > 0 else "")
    if a.renorm:
        if weights != "chosen":
            body.append(f"chosen = {weights}")
            weights = "chosen"
        weights = "chosen / (chosen.sum(-1, keepdim=True) + 1e-20)"
    if a.scale != 1.0:
        weights = f"{weights} * {a.scale!r}"
    body.append(f"return experts, {weights}")
    return Function(name, tuple(parameters), "tuple[Tensor, Tensor]", _route_doc(a), _indented(body))


def _score(what: str, a: RouteAttrs) -> str:
    return f"{what}.softmax(-1)" if a.score is Score.SOFTMAX else f"{what}.sigmoid()"


def _route_doc(a: RouteAttrs) -> str:
    lines = [f"The best {a.top_k} of {a.experts} experts for each token.", ""]
    if a.groups > 1:
        by = "best expert" if a.group_by is GroupBy.MAX else "best two experts"
        lines.append(f"From its best {a.top_groups} of {a.groups} groups, by their {by}.")
    if a.choice_bias:
        lines.append("Chosen with a bias that does not weigh.")
    over = "the chosen" if a.choose is Choose.BY_LOGIT else "all"
    how = f"softmax over {over}" if a.score is Score.SOFTMAX else "a sigmoid each"
    if a.threshold > 0:
        lines.append(f"Only those with a weight of at least {a.threshold:g}: else the expert is -1, and the weight 0.")
    more = (", divided by their sum" if a.renorm else "") + (f", times {a.scale:g}" if a.scale != 1.0 else "")
    return "\n".join([*lines, f"Weights: {how}{more}." if a.weighted else f"Weights: 1{more}."])


def activation_function(name: str, a: ActAttrs) -> Function:
    """The activation of `a`, written into `out`."""
    body: list[str] = []
    if not a.fn.gated:
        x = f"x.clamp({-a.limit!r}, {a.limit!r})" if a.limit > 0 else "x"
        body.append(_ELEMENTWISE[a.fn].format(x=x))
        return Function(name, ("x: Tensor", "out: Tensor"), "None", f"{a.fn}, elementwise.", _indented(body))
    if a.interleaved:
        body.append("gate, up = x[:, ::2], x[:, 1::2]")
    else:
        body.append("gate, up = x.chunk(2, dim=-1)")
    if a.limit > 0:
        body.append(f"gate, up = gate.clamp(max={a.limit!r}), up.clamp({-a.limit!r}, {a.limit!r})")
    sigmoid = "torch.sigmoid(gate)" if a.alpha == 1.0 else f"torch.sigmoid({a.alpha!r} * gate)"
    if a.fn is Act.GEGLU:
        gate = "F.gelu(gate)"
    elif a.fn is Act.GEGLU_TANH:
        gate = 'F.gelu(gate, approximate="tanh")'
    elif a.gate_softcap > 0:
        gate = f"{_softcapped('gate', a.gate_softcap)} * {sigmoid}"
    elif a.alpha == 1.0:
        gate = "F.silu(gate)"
    else:
        gate = f"gate * {sigmoid}"
    up = _softcapped("up", a.up_softcap) if a.up_softcap > 0 else "up"
    up = f"{up} + {a.offset!r}" if a.offset else up
    body.append(f"torch.mul({gate}, {up}, out=out)")
    halves = "alternating columns" if a.interleaved else "halves"
    return Function(
        name, ("x: Tensor", "out: Tensor"), "None", f"{a.fn}: gate and up are {halves} of `x`.", _indented(body)
    )


_ELEMENTWISE = {
    Act.RELU: "torch.clamp({x}, min=0, out=out)",
    Act.RELU2: "torch.square(torch.relu({x}), out=out)",
    Act.SILU: "torch.ops.aten.silu.out({x}, out=out)",
    Act.GELU: "torch.ops.aten.gelu.out({x}, out=out)",
    Act.GELU_TANH: 'torch.ops.aten.gelu.out({x}, approximate="tanh", out=out)',
    Act.SIGMOID: "torch.sigmoid({x}, out=out)",
}


def _softcapped(name: str, cap: float) -> str:
    return f"{cap!r} * torch.tanh({name} / {cap!r})"


def _indented(lines: list[str]) -> tuple[str, ...]:
    return tuple(f"    {line}" for line in lines)
