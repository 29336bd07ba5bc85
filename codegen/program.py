"""Program: what was *written*. One Python file that torchrun starts, and the rules that it keeps."""

from __future__ import annotations

import ast
import keyword
import sys
from dataclasses import dataclass
from typing import TypeGuard

from epsc.ir.errors import Faults

LAZY = frozenset({"safetensors"})
"""Packages that a program may import inside a function only: most runs do without them."""

TRIED = frozenset({"triton"})
"""Packages that a program may import at its top if it goes on without them."""

_FORBIDDEN = frozenset({"eval", "exec", "compile", "__import__", "globals", "locals", "breakpoint", "input"})


@dataclass(frozen=True)
class Program:
    """`text` is a whole Python file; `name` is a good name for it, without the `.py`."""

    name: str
    text: str

    def __str__(self) -> str:
        return self.text

    def verify(self) -> None:
        """Check that the text is Python, stands alone, and calls nothing that runs text as code. Raises EpsError."""
        faults = Faults()
        if not self.name.isidentifier() or keyword.iskeyword(self.name):
            faults.add("bad-program-name", f"`{self.name}` is no name for a Python file")
        if not self.text.isascii():
            # Letters that look like others would make two names read as one.
            faults.add("not-ascii", "the program holds characters beyond ASCII")
        try:
            tree = ast.parse(self.text)
        except (SyntaxError, ValueError) as error:
            faults.add("not-python", f"the program is not Python: {error}")
            faults.raise_if_any()
            return
        top = set(tree.body)
        tried = {node for each in tree.body if _forgives(each) for node in each.body}
        for node in ast.walk(tree):
            for package in _imported(node):
                lazy = package in LAZY and node not in top
                optional = lazy or (package in TRIED and node in tried)
                if package not in sys.stdlib_module_names and package != "torch" and not optional:
                    faults.add("foreign-import", f"line {_line(node)} imports `{package}`: only torch may be needed")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FORBIDDEN:
                faults.add("runs-text", f"line {_line(node)} calls `{node.func.id}`")
        faults.raise_if_any()


def _forgives(node: ast.stmt) -> TypeGuard[ast.Try]:
    """Whether this is a `try` that goes on when something cannot be imported."""
    return isinstance(node, ast.Try) and any(
        isinstance(handler.type, ast.Name) and handler.type.id == "ImportError" for handler in node.handlers
    )


def _imported(node: ast.AST) -> list[str]:
    """The top-level packages that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [(node.module or ".").split(".")[0] if not node.level else "."]
    return []


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))
