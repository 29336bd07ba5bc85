"""The reference: a page for what a Python program calls, and one for each package, made of docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import epsc

ROOT = Path(__file__).parents[2]


def pages(packages: list[str]) -> Iterator[tuple[str, str]]:
    for package in packages:
        yield package, f"reference/{package}.md"


def files(packages: list[str]) -> Iterator[tuple[str, str]]:
    """Every page: its path in the documentation, and its text."""
    lines = ["# Reference", "What `import epsc` gives, and the packages that it is made of.", ""]
    lines += [f"- [`{package}`]({package}.md): {_about(package)}" for package in packages]
    lines += [f"\n::: {epsc._LATE[name]}.{name}" for name in sorted(epsc._LATE, key=str.lower)]
    yield "reference/index.md", "\n".join(lines) + "\n"
    for package, path in pages(packages):
        found = "\n\n".join(f"::: {module}" for module in _modules(package))
        yield path, f"# {package}\n\n{_about(package)}\n\n{found}\n"


def _source(name: str) -> Path:
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _about(name: str) -> str:
    return ast.get_docstring(ast.parse(_source(name).read_text(encoding="utf-8"))) or ""


def _modules(package: str) -> list[str]:
    path = _source(package)
    if path.name != "__init__.py":
        return [package]
    return [f"{package}.{each.stem}" for each in sorted(path.parent.glob("*.py")) if each.stem != "__init__"]
