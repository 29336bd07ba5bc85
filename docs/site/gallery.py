"""The gallery: a page for each file of examples/, with its timelines, its text, and what it would take elsewhere.

Nothing here is written by hand: a file that is added to the folder has a page. What a file is, its first comment says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from epsc import driver
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.source import Source
from epsc.machine import profile as profiles
from epsc.machine.cluster import Mesh
from epsc.machine.reasons import exposures
from epsc.machine.simulate import simulate
from epsc.machine.timeline import Timeline, length
from epsc.render.amounts import duration
from epsc.render.svg import reason, timelines_svg

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TOKENS = 4096
"""Per rank: of every picture and every number."""
SHAPES = {"DeepSeek-V2": "deepseek_v2.eps", "Mixtral-8x7B": "mixtral_8x7b.eps"}
"""Layers that a schedule from elsewhere is tried on."""
WIDTH = 1040
"""Of a picture: as wide as a page without a table of contents, so that its text has the size of that of the page."""
_LONGEST = 3
_WIDE = "---\nhide: [toc]\n---"


@dataclass(frozen=True)
class Run:
    """A schedule of the file as the model of a machine sees it."""

    plan: driver.Plan
    timeline: Timeline

    @property
    def name(self) -> str:
        return self.plan.schedule.name


@dataclass(frozen=True, eq=False)
class Machine:
    """A shipped profile, with as many ranks as it has."""

    name: str
    ranks: int
    nodes: int

    def options(self, mesh: Mesh) -> driver.Options:
        """As many ranks share the experts as are left where several share one."""
        sizes = {"ep": max(1, self.ranks // mesh.etp), "nodes": self.nodes, "tokens": TOKENS}
        return driver.Options({key: str(size) for key, size in sizes.items()}, profile=self.name)


@cache
def machines() -> tuple[Machine, ...]:
    """Of GPUs: at true size, CPU ranks take seconds, and nobody would run a layer there."""
    found = [profiles.load(name) for name in profiles.shipped()]
    found.sort(key=lambda each: (each.ranks, each.name))
    return tuple(Machine(each.name, each.ranks, each.nodes) for each in found if each.device.backend == "cuda")


@dataclass(frozen=True)
class Entry:
    """A file of examples/."""

    path: Path

    @cached_property
    def source(self) -> Source:
        return driver.read(self.path)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def place(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def comment(self) -> str:
        """The lines that the file begins with: what it is, and where it is from."""
        lines = re.match(r"(?:#.*\n)*", self.source.text)
        return " ".join(line.lstrip("# ") for line in lines[0].splitlines()) if lines else ""

    @property
    def text(self) -> str:
        return re.sub(r"\A(?:#.*\n)+", "", self.source.text)

    @property
    def title(self) -> str:
        before = re.split(r":| \(|\. ", self.comment, maxsplit=1)[0].strip()
        return before or self.name

    @property
    def about(self) -> str:
        """The comment, with papers as links."""
        return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", self.comment)

    @property
    def shapes(self) -> dict[str, str | None]:
        """Layers that its schedules are tried on: what is a model is such a shape itself."""
        return {"its own": None} if self.path.parent == EXAMPLES else {"its own": None, **SHAPES}

    @cache  # noqa: B019 - entries live as long as the build
    def runs(self, machine: Machine | None = None, shape: str | None = None) -> tuple[list[Run], list[str]]:
        """Its schedules on a machine, else on its own, for its own layer or a file's; and why others are refused."""
        base = driver.read(EXAMPLES / shape) if shape else self.source
        try:
            options = driver.Options({"tokens": str(TOKENS)})
            if machine:
                options = machine.options(driver.understand(base).cluster.mesh)
            on = driver.understand(base, options)
            own = driver.understand(self.source) if shape else on
        except EpsError as error:
            return [], [error.diagnostics[0].message]
        placed, found, refused = replace(on, spec=own.spec, numbers=own.numbers), list[Run](), list[str]()
        for decl in own.schedules:
            try:
                plan = driver.plan(placed, decl.name)
            except EpsError as error:
                refused.append(f"`{decl.name}`: {error.diagnostics[0].message}")
                continue
            found.append(Run(plan, replace(simulate(plan.schedule, on.cluster, TOKENS), name=decl.name)))
        return found, refused


def entries(patterns: list[str]) -> list[Entry]:
    """Papers first: what others published is what one comes here for."""
    found = [Entry(path) for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return sorted(found, key=lambda entry: (entry.path.parent == EXAMPLES, entry.title.lower()))


def by_steps(shown: list[Entry]) -> list[Entry]:
    """What is read at a glance first: pictures of few steps."""
    return sorted(shown, key=lambda entry: max((len(run.timeline.events) for run in entry.runs()[0]), default=0))


def files(patterns: list[str]) -> Iterator[tuple[str, str]]:
    """Every file of the gallery: its path in the documentation, and its text."""
    shown = entries(patterns)
    yield "gallery/index.md", _index(shown)
    for entry in shown:
        yield f"gallery/{entry.name}.md", page(entry)
        yield from _pair(entry.name, entry.runs()[0])
        for machine in machines():
            if runs := entry.runs(machine)[0]:
                yield from _pair(f"{entry.name}-{machine.name}", runs)


def _pair(name: str, runs: list[Run]) -> Iterator[tuple[str, str]]:
    """The picture on a light page and on a dark one."""
    yield f"gallery/{name}.svg", picture(runs)
    yield f"gallery/{name}-dark.svg", picture(runs, dark=True)


def picture(runs: list[Run], dark: bool = False) -> str:
    why = [reason(run.timeline, run.plan.schedule) for run in runs]
    return timelines_svg([run.timeline for run in runs], WIDTH, why, dark) + "\n"


def _shown(name: str, words: str) -> str:
    """The theme of the site takes the one or the other."""
    return f"![{words}]({name}.svg#only-light)![{words}]({name}-dark.svg#only-dark)"


def _index(shown: list[Entry]) -> str:
    text = [
        _WIDE,
        "# Gallery",
        f"Every file of `examples/`, as the model of its machine sees it at {TOKENS} tokens per rank: predictions, not"
        " measurements. Red is a transfer that nothing hides, in a row of its own and under its bar; a number is a"
        " chunk. [How to read a timeline](../pictures.md).",
        "\n".join([_HEAD, _RULE, *map(_row, shown)]),
    ]
    for entry in by_steps(shown):
        text += [f"## [{entry.title}]({entry.name}.md)", entry.about, _story(entry.runs()[0])]
        text.append(f"[{_shown(entry.name, f'Timelines of {entry.title}')}]({entry.name}.md)")
    return "\n\n".join(text) + "\n"


_HEAD = "| | fastest | takes | `serial` takes | of its transfers exposed | hidden |"
_RULE = "| --- | --- | ---: | ---: | ---: | ---: |"


def _fastest(runs: list[Run]) -> tuple[Run, Run | None]:
    """The fastest of all, and serial if it is another."""
    best = min(runs, key=lambda run: run.timeline.total)
    serial = next((run for run in runs if run.name == "serial" and run is not best), None)
    return best, serial


def _row(entry: Entry) -> str:
    best, serial = _fastest(entry.runs()[0])
    timeline = best.timeline
    moved = [duration(timeline.exposed_transfer), f"{timeline.hidden:.0%}"] if timeline.transfers else ["-", "-"]
    against = duration(serial.timeline.total) if serial else "-"
    cells = [f"[{entry.title}]({entry.name}.md)", f"`{best.name}`", duration(timeline.total), against, *moved]
    return f"| {' | '.join(cells)} |"


def _story(runs: list[Run]) -> str:
    """What one is to see in the picture, in a line."""
    best, serial = _fastest(runs)
    timeline = best.timeline
    faster = f", {serial.timeline.total / timeline.total:.2f} times as fast as `serial`" if serial else ""
    hidden = f"; {timeline.hidden:.0%} of its transfers are hidden" if timeline.transfers else ""
    return f"**`{best.name}` is the fastest: {duration(timeline.total)}{faster}{hidden}.**"


def page(entry: Entry) -> str:
    runs, refused = entry.runs()
    if not runs:
        raise EpsError(Diagnostic("empty", f"{entry.place} has no schedule that runs: {'; '.join(refused)}"))
    cluster = runs[0].plan.layer.cluster
    ranks = f"{cluster.mesh.ep} rank{'' if cluster.mesh.ep == 1 else 's'} of {cluster.device.name}"
    text = [
        _WIDE,
        f"# {entry.title}",
        entry.about,
        "## What runs when",
        _story(runs),
        f"{ranks}, {TOKENS} tokens per rank, predicted. Red is a transfer that nothing hides; a number is a chunk.",
        _shown(entry.name, f"Timelines of {entry.title}"),
        "\n".join(_said(run) for run in runs),
        *_refusals(refused),
        "## What it says",
        f"```eps title={entry.place!r}\n{entry.text.strip()}\n```".replace("'", '"', 2),
        f"```sh\nepsc compare {entry.place} -D tokens={TOKENS} --svg timelines.svg\n```",
        "## What it would take elsewhere",
        f"Milliseconds of a layer and, of these, of transfers that nothing hides; at {TOKENS} tokens per rank, with"
        " as many ranks as the profile has, routing balanced. Predicted; the best of a row in bold.",
        *_tables(entry),
        "## The same on other machines",
        *_pictures(entry),
    ]
    return "\n\n".join(text) + "\n"


def _said(run: Run) -> str:
    """A schedule in a line: what of its transfers is exposed, and the longest stretches of that."""
    timeline = run.timeline
    moved = length(timeline.transfers)
    if not moved:
        return f"- `{run.name}` takes {duration(timeline.total)}, and transfers nothing."
    head = f"- `{run.name}` takes {duration(timeline.total)}; of {duration(moved)} of transfers,"
    longest = sorted(exposures(timeline, run.plan.schedule), key=lambda each: -each.seconds)[:_LONGEST]
    if not longest:
        return f"{head} nothing is exposed."
    lines = "".join(f"\n    - {duration(each.seconds)} of `{each.step}`: {each.words}" for each in longest)
    return f"{head} {duration(timeline.exposed_transfer)} are exposed:{lines}"


def _refusals(refused: list[str]) -> list[str]:
    return ["Not there: " + "; ".join(refused) + "."] if refused else []


def _tables(entry: Entry) -> Iterator[str]:
    names = [decl.name for decl in driver.understand(entry.source).schedules]
    lines = ["| layer | profile | " + " | ".join(f"`{name}`" for name in names) + " |"]
    lines.append("| --- | --- | " + " | ".join("---:" for _ in names) + " |")
    refused: dict[str, list[str]] = {}
    for title, shape in entry.shapes.items():
        for machine in machines():
            runs, reasons = entry.runs(machine, shape)
            for why in reasons:
                refused.setdefault(why, []).append(machine.name if shape is None else f"{title} on {machine.name}")
            if runs:
                lines.append(f"| {title} | {machine.name} | " + " | ".join(_cells(names, runs)) + " |")
    yield "\n".join(lines)
    if refused:
        yield "Not there:\n\n" + "\n".join(f"- {', '.join(where)}: {why}" for why, where in refused.items())


def _cells(names: list[str], runs: list[Run]) -> Iterator[str]:
    best = min(run.timeline.total for run in runs)
    by_name = {run.name: run.timeline for run in runs}
    for name in names:
        if name not in by_name:
            yield ""
            continue
        timeline = by_name[name]
        total = f"{timeline.total * 1e3:.2f}"
        exposed = f"{timeline.exposed_transfer * 1e3:.2f}"
        yield f"{f'**{total}**' if timeline.total == best else total} ({exposed})"


def _pictures(entry: Entry) -> Iterator[str]:
    for machine in machines():
        if entry.runs(machine)[0]:
            shown = _shown(f"{entry.name}-{machine.name}", f"Timelines of {entry.title} on {machine.name}")
            yield f'??? note "{machine.name}"\n\n    {shown}'
