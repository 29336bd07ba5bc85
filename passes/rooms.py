"""Rooms: what a schedule bounds: rows that may come one-sided, and weights that are on the device at a time."""

from __future__ import annotations

from epsc.ir.errors import Faults, Note, did_you_mean
from epsc.ir.graph import Graph, Node
from epsc.ir.source import Span
from epsc.ir.spec import Offload, Room, ScheduleDecl
from epsc.passes.numbers import MOST, Numbers
from epsc.passes.questions import name_of, needed
from epsc.passes.transports import Transport, check_kind, named_in


def rooms_of(
    decl: ScheduleDecl,
    said: Graph,
    transports: dict[str, Transport],
    numbers: Numbers,
    vague: frozenset[str],
    faults: Faults,
) -> dict[str, float]:
    """What `room` asks for, by dispatch."""
    found: dict[str, float] = {}
    spans: dict[str, Span | None] = {}
    for room in decl.directives:
        if not isinstance(room, Room):
            continue
        check_kind(room.targets, "room", "dispatch", said, vague, faults)
        factor = numbers.of(room.factor)
        if factor is not None and not 1 <= factor <= MOST:
            faults.add(
                "bad-number",
                f"room for {factor} times the rows of balanced routing: that must be at least 1, or balanced routing"
                " overflows it",
                room.span,
                help="leave out the `room`: without it there is room for every copy of every token",
            )
        for node in named_in(room.targets, [node for node in needed(said) if node.kind == "dispatch"]):
            if node.name in spans:
                faults.add(
                    "room-twice",
                    f"the room for `{node.origin}` is said twice",
                    room.span,
                    notes=[Note("first here", spans[node.name])],
                )
            elif node.name not in transports:
                faults.add(
                    "collective",
                    f"`room` for `{node.origin}` has nothing to bound: an all2all takes memory for the rows that come",
                    room.span,
                    help=f"add `use put for {node.origin}`, or leave out the `room`",
                )
            spans.setdefault(node.name, room.span)
            if factor is not None:
                found[node.name] = float(factor)
    return found


def slots_of(
    decl: ScheduleDecl,
    said: Graph,
    transports: dict[str, Transport],
    numbers: Numbers,
    vague: frozenset[str],
    faults: Faults,
) -> dict[str, int]:
    """What `offload` asks for, by expert gemm."""
    gemms: dict[str, list[Node]] = {}
    for node in needed(said):
        if node.kind == "expert_gemm":
            gemms.setdefault(name_of(node), []).append(node)
    found: dict[str, int] = {}
    spans: dict[str, Span | None] = {}
    for offload in decl.directives:
        if not isinstance(offload, Offload):
            continue
        for node in (node for target in offload.targets for node in gemms.get(target.name, ())):
            dispatch = said.types[node.ins[0]].shape[0].symbol[len("rows(") : -1]
            if getattr(said.node[dispatch].attrs, "etp", 1) > 1:
                faults.add(
                    "offload-shared",
                    f"`{name_of(node)}` is cut over the ranks of etp: a slot holds the whole weight of an expert",
                    offload.span,
                    help="leave out the `offload`, or etp",
                )
            if dispatch in transports:
                faults.add(
                    "split-one-sided",
                    f"the experts of `{name_of(node)}` cannot be taken one at a time: rows that travel one-sided"
                    " lie in one piece",
                    offload.span,
                    help="leave out the `offload`, or let an all2all move the rows",
                )
        slots = numbers.whole(offload.slots, "the number of slots")
        for target in offload.targets:
            if target.name not in gemms and target.name not in vague:
                faults.add(
                    "not-an-expert-weight",
                    f"`{target.name}` is no weight of experts: `offload` brings them one expert at a time",
                    target.span,
                    help=did_you_mean(target.name, gemms),
                )
            elif target.name in spans:
                notes = [Note("first here", spans[target.name])]
                faults.add("offload-twice", f"`{target.name}` is offloaded twice", target.span, notes=notes)
            spans.setdefault(target.name, target.span)
            found |= {node.name: slots or 1 for node in gemms.get(target.name, ())}
    return found
