"""Places in a user's Python: where a traced op, or a module, was written."""

from __future__ import annotations

import inspect
import linecache
import re
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.fx import Node

from epsc.ir.source import Source, Span

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = str(Path(torch.__file__).parent)


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
