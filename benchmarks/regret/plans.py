"""Which plans are worth measuring: of every way for rows to travel the one predicted best, at every load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from epsc import driver
from epsc.grammar import format_spec
from epsc.ir.source import Source
from epsc.ir.spec import Dedup, LocalReduce, Name, ScheduleDecl, Spec, Split, Use
from epsc.passes.auto import Candidate, search

LOADS = (16, 256, 1024, 4096, 8192)
"""Tokens per rank."""


@dataclass(frozen=True)
class Case:
    """A layer at a load on so many ranks."""

    file: Path
    tokens: int
    ranks: int
    preset: str | None = None
    profile: str | None = None

    def layer(self, most: int | None = None) -> driver.Layer:
        """As it is understood for this load, or for `most` tokens per rank."""
        defines = {"ep": str(self.ranks), "tokens": str(most or self.tokens)}
        options = driver.Options(defines, preset=self.preset, profile=self.profile)
        return driver.understand(driver.read(self.file), options)


def asked(case: Case, most: int) -> tuple[Candidate, list[Candidate]]:
    """What `auto` takes at this load of a program that is made for `most` tokens per rank, and all it asks about."""
    layer = case.layer(most)
    return search(layer.said, layer.graph, layer.numbers, layer.cluster, case.tokens, layer.options.pipeline, most=most)


def family(decl: ScheduleDecl) -> tuple[str, ...]:
    """What plans have in common that differ by SMs, number of pieces or what runs beside: how rows travel, and what is
    cut."""
    words = []
    for directive in decl.directives:
        if isinstance(directive, Split):
            words.append(str(directive.axis))
        elif isinstance(directive, Use):
            words += [name.name for name in directive.impls if isinstance(name, Name)]
        elif isinstance(directive, Dedup | LocalReduce):
            words.append(type(directive).__name__)
    return tuple(words)


def worth(cases: list[Case], near: int = 3) -> dict[str, ScheduleDecl]:
    """Schedules by name, for all loads of one layer: of each load the `near` predicted fastest, as they are and as
    graphs, and of each family the fastest at any load. `serial` stands in the files already."""
    found: dict[str, ScheduleDecl] = {}
    for case in cases:
        best, every = asked(case, max(c.tokens for c in cases))
        order = sorted(every, key=lambda c: c.seconds)
        found[best.decl.name] = best.decl
        found |= {c.decl.name: c.decl for c in order[:near]}
        if case.tokens in (min(c.tokens for c in cases), max(c.tokens for c in cases)):
            firsts: dict[tuple[str, ...], ScheduleDecl] = {}
            for candidate in order:
                firsts.setdefault(family(candidate.decl), candidate.decl)
            found |= {decl.name: decl for decl in firsts.values()}
    found.pop("serial", None)
    return found


def with_plans(source: Source, plans: dict[str, ScheduleDecl]) -> Source:
    """The file with these schedules as well."""
    texts = (format_spec(Spec((replace(decl, name=name),))) for name, decl in plans.items())
    return Source(source.name, "\n".join([source.text, *texts]))
