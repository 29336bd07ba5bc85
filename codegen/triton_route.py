"""Triton routers: the lines of the kernel of one router, without branches for what it does not ask for."""

from __future__ import annotations

from epsc.codegen.functions import route_function
from epsc.ir.attrs import Choose, GroupBy, RouteAttrs, Score

_TILE = 1024
"""Numbers of the tile of a program, unless one token has more experts."""


def route_facts(name: str, a: RouteAttrs) -> dict[str, object]:
    """What the template of a router fills in."""
    size = a.experts // a.groups
    places = _power(a.groups) * _power(size)
    tokens = max(1, _TILE // places)
    constants = {"EXPERTS": a.experts, "TOP_K": a.top_k, "TOKENS": tokens, "PLACES": places, "SLOTS": _power(a.top_k)}
    if a.groups > 1:
        constants |= {"GROUPS": a.groups, "SIZE": size, "ALL_GROUPS": _power(a.groups), "ALL": _power(size)}
    # The torch function has the same parameters, result and rules.
    same = route_function(name, a)
    biases = [each for each, there in (("bias", a.bias), ("choice_bias", a.choice_bias)) if there]
    operands = ", ".join(["logits", *biases, "experts", "weights", "count"])
    return {
        "name": name,
        "head": same.head,
        "doc": same.doc_lines,
        "parameters": operands,
        "arguments": operands,
        "constants": [
            *(f"{name}: tl.constexpr = {value}" for name, value in constants.items()),
            "TAKEN: tl.constexpr = -(2**63)  # less than any key",
        ],
        "tokens": tokens,
        "top_k": a.top_k,
        "grid": "count" if tokens == 1 else f"-(-count // {tokens})",
        "warps": min(16, max(4, places // 512)),
        "score": _score(a),
        "choice": _choice(a),
        "empty": '-float("inf")' if a.choose is Choose.BY_LOGIT else "0.0",
        "take": _take(a),
        "weigh": _weigh(a),
    }


def _power(count: int) -> int:
    """The next power of two: what Triton's tiles have."""
    return 1 << (count - 1).bit_length()


def _score(a: RouteAttrs) -> list[str]:
    """Lines that make `score`, and say which expert is at each place, and where one is `there`."""
    lines = ["expert = tl.arange(0, PLACES)[None, :]", "there = expert < EXPERTS"]
    if a.groups > 1:
        lines = [
            "place = tl.arange(0, PLACES)[None, :]",
            "group, member = place // ALL, place % ALL",
            "expert = group * SIZE + member",
            "there = (group < GROUPS) & (member < SIZE)",
        ]
    lines.append('score = tl.load(logits + token * EXPERTS + expert, there, -float("inf"))')
    if a.bias:
        lines.append("score += tl.load(bias + expert, there, 0.0).to(tl.float32)")
    if a.choose is Choose.BY_SCORE:
        lines += _scored("score", a)
    return lines


def _scored(what: str, a: RouteAttrs) -> list[str]:
    """Logits become scores: -inf becomes 0."""
    if a.score is Score.SIGMOID:
        return [f"{what} = 1.0 / (1.0 + tl.exp(-{what}))"]
    return [
        f"{what} = tl.exp({what} - tl.reduce({what}, 1, larger)[:, None])",
        f"{what} = {what} / tl.reduce({what}, 1, plus)[:, None]",
    ]


def _choice(a: RouteAttrs) -> list[str]:
    """Lines that make `key`, by which experts are chosen."""
    choice = "score"
    lines = []
    if a.choice_bias:
        lines.append("choice = score + tl.load(choice_bias + expert, there, 0.0).to(tl.float32)")
        choice = "choice"
    if a.groups == 1:
        return [*lines, f"key = tl.where(there, ordered({choice}, expert), TAKEN)"]
    lines += [
        f"key = tl.where(there, ordered({choice}, place), TAKEN)",
        "grouped = tl.reshape(key, (TOKENS, ALL_GROUPS, ALL))",
        "first = tl.reduce(grouped, 2, larger)",
    ]
    total = "value_of(first)"
    if a.group_by is GroupBy.TOP2 and a.experts > a.groups:
        lines.append("second = tl.reduce(tl.where(grouped == first[:, :, None], TAKEN, grouped), 2, larger)")
        total += " + value_of(second)"
    return [
        *lines,
        "group = tl.arange(0, ALL_GROUPS)[None, :]",
        f"group_key = tl.where(group < GROUPS, ordered({total}, group), TAKEN)",
        f"for each in range({a.top_groups}):",
        "    group_key = tl.where(group_key == tl.reduce(group_key, 1, larger)[:, None], TAKEN, group_key)",
        "# What is not taken now is dropped.",
        "key = tl.reshape(tl.where(group_key[:, :, None] == TAKEN, grouped, TAKEN), (TOKENS, PLACES))",
    ]


def _take(a: RouteAttrs) -> list[str]:
    """Lines that note the `best` of a round in its slot."""
    at = "place_of(best)"
    expert = at
    lines = []
    if a.groups > 1:
        lines.append(f"at = {at}")
        expert = "at // ALL * SIZE + at % ALL"
    lines.append(f"chosen = tl.where(slot == each, {expert}, chosen)")
    found = "value_of(best)"
    if a.choice_bias:
        lines.append("own = tl.reduce(tl.where(key == best, score, 0.0), 1, plus)[:, None]")
        found = "own"
    return [*lines, f"weight = tl.where(slot == each, {found}, weight)"]


def _weigh(a: RouteAttrs) -> list[str]:
    """Lines that make weights of the scores, or of the logits, of the chosen."""
    lines = _scored("weight", a) if a.choose is Choose.BY_LOGIT and (a.weighted or a.threshold > 0) else []
    if a.threshold > 0:
        lines += [
            f"chosen = tl.where(weight < {a.threshold!r}, -1, chosen)",
            f"weight = tl.where(weight < {a.threshold!r}, 0.0, {'weight' if a.weighted else '1.0'})",
        ]
    elif not a.weighted:
        lines.append("weight = tl.full((TOKENS, SLOTS), 1.0, tl.float32)")
    if a.renorm:
        lines.append("weight = weight / (tl.reduce(weight, 1, plus)[:, None] + 1e-20)")
    if a.scale != 1.0:
        lines.append(f"weight = weight * {a.scale!r}")
    return lines
