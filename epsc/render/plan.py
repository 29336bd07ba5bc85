"""A Schedule as a JSON file, for tools and for keeping: every field by name, enums by value, in declaration order.

Invariant: `plan_parse(plan_json(s)) == s` (spans are left out). The reader follows the types of the dataclasses, so a
new field needs no line here; `FORMAT` goes up when an old file no longer reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from epsc.ir.errors import Diagnostic, EpsError, did_you_mean
from epsc.ir.graph import Node
from epsc.ir.kinds import KINDS
from epsc.ir.schedule import Schedule
from epsc.ir.source import Source, Span

FORMAT = 1
_WIDTH = 110


def plan_json(schedule: Schedule) -> str:
    """The plan as JSON text. The same schedule gives the same bytes."""
    return _written({"format": FORMAT, "schedule": _plain(schedule)}, 0) + "\n"


def plans_json(plans: Sequence[tuple[tuple[int, int], Schedule]]) -> str:
    """The plans of one program as JSON text: with the loads that each is for, if they are several."""
    if len(plans) == 1:
        return plan_json(plans[0][1])
    every = [{"tokens": list(load), "schedule": _plain(schedule)} for load, schedule in plans]
    return _written({"format": FORMAT, "plans": every}, 0) + "\n"


def plan_parse(text: str, name: str = "<plan>") -> Schedule:
    """The schedule of a plan file. Raises EpsError with the place in the file or the path of the field that is wrong.

    The result has the right types everywhere but is not proven: `verify` it.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        span = Span(Source(name, text), error.pos, error.pos + 1)
        raise EpsError(Diagnostic("bad-plan", f"this is no JSON: {error.msg}", span)) from None
    if isinstance(data, dict) and "plans" in data:
        message = "these are plans by load, and this takes one plan"
        raise _bad(name, message, "`epsc inspect --json --at N` writes the one for N tokens")
    if not isinstance(data, dict) or "format" not in data:
        raise _bad(name, "a plan is an object with a `format` and a `schedule`")
    if type(data["format"]) is not int or data["format"] != FORMAT:
        raise _bad(name, f"the plan has format {data['format']!r}, and only {FORMAT} is known", "write it again")
    schedule = _typed(Schedule, data.get("schedule"), f"{name}: schedule")
    assert isinstance(schedule, Schedule)
    return schedule


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        # Fields that do not count for equality are spans: places in a file that the reader of a plan need not have.
        # Lines of Python have their text with them; where there are none, nothing is said.
        told = (f for f in fields(value) if f.compare or (_told(f) and getattr(value, f.name)))
        return {f.name: _plain(getattr(value, f.name)) for f in told}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _told(field: Field[Any]) -> bool:
    """Whether a field that does not count for equality is written all the same."""
    return bool(field.metadata.get("json"))


def _written(value: Any, indent: int) -> str:
    """JSON with everything that fits on one line on one line: a step reads better in five lines than in fifty."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= _WIDTH or not isinstance(value, dict | list) or not value:
        return line
    inner = " " * (indent + 1)
    if isinstance(value, dict):
        items = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_written(v, indent + 1)}" for key, v in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    items = [f"{inner}{_written(item, indent + 1)}" for item in value]
    return "[\n" + ",\n".join(items) + "\n" + " " * indent + "]"


def _typed(kind: Any, value: Any, path: str) -> Any:
    """`value` as the type `kind`; `path` says where in the file it stands."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _one_of(args, value, path)
    if origin is tuple:
        items = _expect(list, value, path)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_typed(args[0], item, f"{path}[{i}]") for i, item in enumerate(items))
        if len(items) != len(args):
            raise _bad(path, f"should hold {len(args)} items, not {len(items)}")
        return tuple(_typed(arg, item, f"{path}[{i}]") for i, (arg, item) in enumerate(zip(args, items, strict=True)))
    if origin is dict:
        return {key: _typed(args[1], item, f"{path}.{key}") for key, item in _expect(dict, value, path).items()}
    if issubclass(kind, Enum):
        for member in kind:
            if type(value) is type(member.value) and value == member.value:
                return member
        raise _bad(path, f"{value!r:.60} should be one of {', '.join(repr(member.value) for member in kind)}")
    if is_dataclass(kind):
        return _object(kind, _expect(dict, value, path), path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _expect(kind, value, path)


def _object(kind: Any, value: dict[str, Any], path: str) -> Any:
    wanted = {f.name: f for f in fields(kind) if f.compare or _told(f)}
    hints = dict(_hints(kind))
    for key in value:
        if key not in wanted:
            raise _bad(path, f"has no field `{key}`", did_you_mean(key, wanted))
    for key, f in wanted.items():
        if key not in value and f.default is MISSING and f.default_factory is MISSING:
            raise _bad(path, f"lacks the field `{key}`")
    if kind is Node:
        # The kind of an op says which attributes it has.
        name = _expect(str, value["kind"], f"{path}.kind")
        if name not in KINDS:
            raise _bad(f"{path}.kind", f"`{name}` is no kind of op", did_you_mean(name, KINDS))
        hints["attrs"] = KINDS[name].attrs
    typed = {key: _typed(hints[key], item, f"{path}.{key}") for key, item in value.items()}
    try:
        return kind(**typed)
    except ValueError as error:
        raise _bad(path, str(error)) from None


def _one_of(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    rest = [kind for kind in kinds if kind is not NoneType]
    if len(rest) == 1:
        return _typed(rest[0], value, path)
    if type(value) in rest:
        return value
    raise _bad(path, f"{value!r} should be {' or '.join(_WORDS.get(kind, kind.__name__) for kind in rest)}")


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _expect(kind: Any, value: Any, path: str) -> Any:
    if type(value) is not kind:
        raise _bad(path, f"{value!r:.60} should be {_WORDS.get(kind, kind.__name__)}")
    return value


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _bad(path: str, message: str, help: str | None = None) -> EpsError:
    return EpsError(Diagnostic("bad-plan", f"{path}: {message}", help=help))
