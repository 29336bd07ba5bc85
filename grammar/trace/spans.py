"""Places in a user's Python: where a traced op, or a module, was written."""

from __future__ import annotations

import ast
import inspect
import linecache
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.fx import Node

from epsc.ir.places import Place
from epsc.ir.source import Source, Span, printable

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = str(Path(torch.__file__).parent)
_MOST = 90
"""Characters of a line of Python that a comment holds."""


@cache
def _source(path: str) -> Source:
    return Source(path, "".join(linecache.getlines(path)))


def line_span(path: str, line: int) -> Span | None:
    """The text of a line of a Python file, without its indentation."""
    source = _source(path)
    lines = source.text.splitlines(keepends=True)
    if not 0 < line <= len(lines):
        return None
    start = sum(len(each) for each in lines[: line - 1])
    text = lines[line - 1].rstrip()
    return Span(source, start + len(text) - len(text.lstrip()), start + len(text))


def node_span(node: Node | None) -> Span | None:
    """Where the op was written: the innermost place that is not inside torch or epsc."""
    trace = (node.meta.get("stack_trace") or "") if node is not None else ""
    for path, line in reversed(_FRAME.findall(trace)):
        if not path.startswith((_TORCH, "<")) and f"{Path('epsc', 'grammar', 'trace')}" not in path:
            return line_span(path, int(line))
    return None


def module_span(module: nn.Module) -> Span | None:
    """Where the `forward` of a module's class starts."""
    try:
        code = inspect.unwrap(type(module).forward).__code__
    except (AttributeError, TypeError):
        return None
    return line_span(code.co_filename, code.co_firstlineno)


def weight_span(module: nn.Module, name: str) -> Span | None:
    """Where a tensor of a module is read: in the innermost class outside of torch that it belongs to."""
    path = name.split(".")
    for depth in range(len(path) - 1, -1, -1):
        owner = type(module.get_submodule(".".join(path[:depth])))
        for method in _methods(owner):
            if line := _first_read(method, path[depth]):
                return line_span(method.__code__.co_filename, line)
    return None


def place_of(span: Span) -> Place | None:
    """A line of Python as a comment can name it: the file as it is imported, not where it lies on this machine."""
    file = _shown(span.source.name)
    text = " ".join(printable(span.source.line(span.line)).split())
    place = Place(file, span.line, text if len(text) <= _MOST else f"{text[: _MOST - 4]} ...")
    # A name that no comment can hold, with a blank in it, is better left out than told wrong.
    return place if Place.parse(place.comment) == place else None


def _shown(file: str) -> str:
    """Below the longest entry of the path of imports; the name alone where there is none."""
    path = Path(file).resolve()
    above = [path.relative_to(root) for entry in sys.path if path.is_relative_to(root := Path(entry).resolve())]
    return min(above, key=lambda each: len(each.parts), default=Path(path.name)).as_posix()


def _methods(kind: type) -> Iterator[Callable[..., object]]:
    """What the classes of a module, those of torch left out, define: `forward` first."""
    for each in kind.__mro__:
        found = [inspect.unwrap(value) for value in vars(each).values() if inspect.isfunction(value)]
        for method in sorted(found, key=lambda method: method.__name__ != "forward"):
            if method.__name__ != "__init__" and not method.__code__.co_filename.startswith((_TORCH, "<")):
                yield method


def _first_read(method: Callable[..., object], attribute: str) -> int | None:
    """The first line of a method that reads `self.attribute`."""
    code = method.__code__
    if not code.co_argcount:
        return None
    lines = [
        node.lineno
        for function in _functions(code.co_filename).get(code.co_firstlineno, ())
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and node.attr == attribute
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.value, ast.Name)
        and node.value.id == code.co_varnames[0]
    ]
    return min(lines, default=None)


@cache
def _functions(path: str) -> dict[int, list[ast.FunctionDef]]:
    """The functions of a Python file by the line that they start in."""
    try:
        tree = ast.parse(_source(path).text)
    except SyntaxError:
        return {}
    found: dict[int, list[ast.FunctionDef]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            found.setdefault(first, []).append(node)
    return found
