"""Schedules to break: those of the examples, and random ones that a seed makes, all through the driver."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from epsc import driver
from epsc.ir.errors import EpsError
from epsc.ir.schedule import Schedule
from epsc.ir.source import Source
from epsc.passes.pipeline import configured

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.eps"))


@dataclass(frozen=True)
class Made:
    """A proven schedule, and the text and options that it came from, so that a failure can be repeated."""

    origin: str
    plan: driver.Plan

    @property
    def schedule(self) -> Schedule:
        return self.plan.schedule


@cache
def example_schedules() -> tuple[Made, ...]:
    """Every example x its schedules but `auto` x true and small size x ep 2 and 4."""
    found = []
    for path in EXAMPLES:
        source = driver.read(path)
        for preset in (None, "small"):
            for ep in ("2", "4"):
                # Mixtral has too few experts for its 4 groups on 4 ranks.
                few = {"groups": "2"} if path.stem == "mixtral_8x7b" else {}
                layer = driver.understand(source, driver.Options({"ep": ep, **few}, preset))
                found += [
                    Made(f"{path.name} schedule {decl.name} preset {preset} ep {ep}", driver.plan(layer, decl.name))
                    for decl in layer.schedules
                    if not (decl.auto or decl.by_load)
                ]
    return tuple(found)


@cache
def random_schedules(count: int, seed: int = 2410_12247) -> tuple[Made, ...]:
    """`count` schedules of random layers. A draw that asks for what cannot be had is drawn again."""
    random = Random(seed)
    found: list[Made] = []
    while len(found) < count:
        text, passes = random_file(random)
        try:
            found.append(Made(f"-p '{passes}'\n{text}", compiled(text, passes)))
        except EpsError as error:
            # The file may ask for the impossible; but what a pass breaks is a fault of the pass.
            assert not [d for d in error.diagnostics if "after pass" in d.message], f"{error}\n-p '{passes}'\n{text}"
    return tuple(found)


def compiled(text: str, passes: str = "", schedule: str | None = None) -> driver.Plan:
    """The plan of the file's first schedule, or of the one named."""
    layer = driver.understand(Source("test.eps", text), driver.Options(pipeline=configured(passes)))
    return driver.plan(layer, schedule)


def draws(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """`count` random files with their pass options, possible or not."""
    random = Random(seed)
    for _ in range(count):
        yield random_file(random)


def random_file(random: Random) -> tuple[str, str]:
    """The text of a file with one layer (perhaps stacked) and one schedule, and options for `-p`."""
    ep = random.choice((1, 2, 4, 8))
    branches = [_Branch(i, ep * random.choice((1, 2, 3, 5, 8)), random) for i in range(random.choice((1, 1, 1, 2)))]
    hidden = random.choice((16, 48, 64))
    body = [line for branch in branches for line in branch.lines(hidden)]
    terms = [f"back{branch.suffix}" for branch in branches]
    shared = random.choice(("", "", "mlp", "mlp", "gated"))
    if shared:
        body.append(f"  side = mlp(x, {random.choice(('swiglu', 'relu2'))}, {random.choice((16, 40))})")
        terms.append("sigmoid(gemm(x, gate, 1))*side" if shared == "gated" else "side")
    if random.random() < 0.4:
        terms.append("x")
    random.shuffle(terms)
    text = f"layer block(x: bf16[tokens, {hidden}]) {{\n" + "\n".join(body) + f"\n  return {' + '.join(terms)}\n}}\n"
    depth = random.choice((1, 1, 1, 2, 3))
    if depth > 1:
        text += f"layer model(x: bf16[tokens, {hidden}]) {{\n  return stack(block, x, {depth})\n}}\n"
    text += f"cluster c {{ device = h200  ep = {ep} }}\n"
    directives = [d for branch in branches for d in branch.directives(ep)] + _sides(random, branches, bool(shared))
    text += "schedule s {\n" + "".join(f"  {d}\n" for d in directives) + "}\n"
    return text, _pass_options(random)


class _Branch:
    """One route -> dispatch -> experts -> combine, and what the schedule says of it."""

    def __init__(self, index: int, experts: int, random: Random) -> None:
        self.suffix, self.experts, self.random = str(index or ""), experts, random
        self.deep = random.random() < 0.8
        """Two gemms with an activation between them; else one gemm."""
        self.one_sided = random.choice(("", "", "", "put", "copy"))
        """How rows travel, if not by an all2all."""

    @property
    def moved(self) -> list[str]:
        return [f"sent{self.suffix}", f"back{self.suffix}"]

    def lines(self, hidden: int) -> list[str]:
        s, random = self.suffix, self.random
        top_k = random.randint(1, min(4, self.experts))
        fn, width = random.choice((("swiglu", 2 * 24), ("gelu", 24)))
        inner = f"gemm(h{s}, down{s}, {hidden})" if self.deep else f"gemm(sent{s}, only{s}, {hidden})"
        return [
            f"  r{s} = route(x, experts={self.experts}, top_k={top_k}, score={random.choice(('softmax', 'sigmoid'))})",
            f"  sent{s} = dispatch(x, r{s})",
            *([f"  h{s} = {fn}(gemm(sent{s}, up{s}, {width}))"] if self.deep else []),
            f"  back{s} = combine({inner}, r{s})",
        ]

    def directives(self, ep: int) -> list[str]:
        return self._one_sided(ep) if self.one_sided else self._collective(ep)

    def _one_sided(self, ep: int) -> list[str]:
        s, random, put = self.suffix, self.random, self.one_sided == "put"
        found = [f"use {self.one_sided} for sent{s}", f"use {random.choice(('put', 'put', 'direct'))} for back{s}"]
        found += [d for d in (f"dedup sent{s}", f"local_reduce back{s}") if random.random() < 0.5]
        if random.random() < 0.4:
            count = random.randint(1, max(1, self.experts // ep))
            names = random.choice((f"sent{s}, back{s}", f"sent{s}", *([f"sent{s}, h{s}"] if self.deep else [])))
            found.append(f"split {names} by expert_group into {count}")
            if f"back{s}" not in names and random.random() < 0.5:
                found.append(f"split back{s} by columns into 2")
        elif random.random() < 0.5:
            found.append(f"split back{s} by columns into 2")
        if random.random() < 0.2:
            found.append(f"room {random.choice((1, 1.5, 4))} for sent{s}")
        if random.random() < 0.4:
            names = random.choice((self.moved, self.moved[:1], self.moved[1:])) if put else self.moved[1:]
            found.append(f"reserve {random.choice((8, 16, 60))} sms for {', '.join(names)}")
        if random.random() < 0.2:
            found.append(f"run r{s} beside sent{s}")
        if random.random() < 0.3:
            found.append(f"run {random.choice(self.moved)} on {random.choice(('inter', 'links'))}")
        if self.deep and random.random() < 0.2:
            found.append(f"run {random.choice((f'h{s}', f'up{s}'))} on experts{s}")
        return found

    def _collective(self, ep: int) -> list[str]:
        s, random, found = self.suffix, self.random, []
        axis = random.choice(("expert_group", "expert_group", "tokens", "peer", "none"))
        if axis == "peer":
            found.append(f"split sent{s}{random.choice((f', h{s}', '')) if self.deep else ''} by peer into ep")
        if axis in ("peer", "none") and random.random() < 0.5:
            found.append(f"split back{s} by columns into 2")
        elif axis in ("expert_group", "tokens"):
            most = self.experts // ep if axis == "expert_group" else 6
            targets = ", ".join([f"sent{s}", *([f"h{s}"] if self.deep else []), f"back{s}"])
            if axis == "expert_group" and random.random() < 0.2:
                targets = f"sent{s}, back{s}" if random.random() < 0.5 else f"h{s}" if self.deep else targets
            found.append(f"split {targets} by {axis} into {random.randint(1, max(1, most))}")
        if random.random() < 0.4:
            gemms = f"up{s}, down{s}" if self.deep else f"only{s}"
            found.append(f"use {random.choice(('grouped', 'batched'))} for {gemms} when mean_rows < 64 else dense")
        if random.random() < 0.4:
            names = random.choice((self.moved, self.moved[:1]))
            found.append(f"reserve {random.choice((8, 16, 60))} sms for {', '.join(names)}")
        if random.random() < 0.2:
            found.append(f"run {random.choice(self.moved)} on {random.choice(('inter', 'links'))}")
        if self.deep and random.random() < 0.1:
            found.append(f"run h{s} on experts{s}")
        return found


def _sides(random: Random, branches: list[_Branch], shared: bool) -> list[str]:
    """Directives that speak of several branches, or of the shared mlp."""
    found = []
    if shared and random.random() < 0.5:
        found.append(f"run side beside {random.choice(branches[0].moved)}")
    if shared and random.random() < 0.2:
        found.append(random.choice(("run side before back", "run sent before side", "run side on experts")))
    if len(branches) == 2 and random.random() < 0.5:
        found.append(random.choice(("run sent before sent1", "run sent1 before back", "run sent beside back1")))
    if random.random() < 0.08:
        found.append("overlap none")
    return found


def _pass_options(random: Random) -> str:
    options = {
        "fuse": ("sums=false",),
        "choose": ("experts=dense", "experts=batched"),
        "chunk": ("n=2", "n=3"),
        "place": ("overlap=false",),
        "order": ("prefetch=1", "prefetch=3"),
        "buffers": ("share=false",),
    }
    return ",".join(f"{name}{{{random.choice(values)}}}" for name, values in options.items() if random.random() < 0.12)
