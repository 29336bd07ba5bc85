"""The documentation holds: what it shows runs and prints that, its links lead somewhere, and no name is left out.

`make golden` rewrites shown outputs that differ, unless they hold a `...`.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest

from epsc import driver
from epsc.cli import cli
from epsc.grammar import format_spec, parse
from epsc.ir.attrs import Act, ActAttrs, Choose, GemmAttrs, GroupBy, RouteAttrs, Score
from epsc.ir.dims import Axis, DType
from epsc.ir.errors import EpsError
from epsc.ir.impls import IMPLS, Metric
from epsc.ir.schedule import Hazard, Stage
from epsc.ir.source import Source
from epsc.machine.cluster import DEVICES
from epsc.passes.build import BUILTINS
from epsc.passes.numbers import CLUSTER_KEYS
from epsc.passes.pipeline import PIPELINE
from tests.docs.pages import BLOCKS, BY_NAME, PAGES, ROOT, Block, Page, matches, with_frame


def of(*infos: str) -> pytest.MarkDecorator:
    found = [block for block in BLOCKS if block.info in infos]
    assert found
    return pytest.mark.parametrize("block", found, ids=lambda block: block.id)


# --- what is shown, runs ----------------------------------------------------------------------------------------------


@of("eps", "eps frame", "eps unformatted")
def test_layer_files_are_proven(block: Block) -> None:
    """Every schedule of the block; and it is written as `epsc fmt` would."""
    layer, _ = driver.check(Source("moe.eps", with_frame(block.text)))
    for decl in layer.schedules:
        if decl.auto:
            driver.plan(layer, decl.name)
    if block.info != "eps unformatted":
        assert format_spec(parse(Source("moe.eps", block.text))) == block.text


@of("eps error")
def test_wrong_layer_files_are_told_so(block: Block, update_golden: bool) -> None:
    with pytest.raises(EpsError) as caught:
        driver.check(Source("moe.eps", with_frame(block.text)))
    assert block.output is not None, "an `eps error` block is followed by a `text` block: what epsc says"
    if not matches(block.output, str(caught.value)) and update_golden:
        rewrite(block.page, block.text, block.output, str(caught.value))
    else:
        assert matches(block.output, str(caught.value)), f"it says now:\n{caught.value}"


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """A folder with the examples and an `epsc` that is this one, whether it is installed or not."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/epsc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m epsc "$@"\n')
    (tmp_path / "bin/epsc").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "COLUMNS": "80"}


@of("console")
def test_commands_print_what_is_shown(block: Block, shell: dict[str, str], tmp_path: Path, update_golden: bool) -> None:
    wrong = []
    for piece in re.findall(r"^\$ .*\n(?:(?!\$ ).*\n)*", block.text, re.MULTILINE):
        command, _, shown = piece.partition("\n")
        real = run(["sh", "-c", command.removeprefix("$ ")], shell, tmp_path)
        if matches(shown, real):
            continue
        if update_golden and "..." not in shown:
            rewrite(block.page, f"{command}\n", shown, real)
        else:
            wrong.append(f"{command}\n{real}")
    assert not wrong, "it prints now:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.info == "python" for b in page.blocks)], ids=lambda page: page.path.name
)
def test_python_of_a_page_runs(page: Page, shell: dict[str, str], tmp_path: Path, update_golden: bool) -> None:
    """All ```python blocks of a page, one after the other in one process; each prints what is shown behind it."""
    mark = "=== next block ==="
    blocks = [block for block in page.blocks if block.info == "python"]
    text = "".join(f"{block.text}\nprint({mark!r})\n" for block in blocks)
    (tmp_path / "page.py").write_text(text)
    *printed, last = run([sys.executable, "page.py"], shell, tmp_path).split(f"{mark}\n")
    assert not last, last
    for block, real in zip(blocks, printed, strict=True):
        if not matches(block.output or "", real) and update_golden and block.output:
            rewrite(page.path, block.text, block.output, real)
        else:
            assert matches(block.output or "", real), f"{block.id} prints now:\n{real}"


def run(command: list[str], env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(command, env=env, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout


def rewrite(path: Path, before: str, shown: str, real: str) -> None:
    """Put `real` in the place of the first `shown` behind the text `before`."""
    assert "Traceback" not in real, real
    head, found, tail = path.read_text(encoding="utf-8").partition(before)
    assert found
    real = "".join(f"{line.rstrip()}\n" for line in real.splitlines())
    # Behind a command comes what it prints, behind any other block a block of its own.
    fence = "```text\n" if tail.startswith("```\n") else ""
    path.write_text(head + found + tail.replace(fence + shown, fence + real, 1), encoding="utf-8")


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Page) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.prose):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.path.parent / name).resolve() if name else page.path
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def anchors(path: Path) -> set[str]:
    """The names that a page's headings get on GitHub."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_index_names_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)\s#]+)", BY_NAME["docs/README.md"].prose))
    pages = {str(page.path.relative_to(ROOT / "docs")) for page in PAGES if (ROOT / "docs") in page.path.parents}
    assert pages - {"README.md"} <= linked


# --- names ------------------------------------------------------------------------------------------------------------


def option_names(cls: type) -> set[str]:
    return {field.name for field in fields(cls)}


def codes(*folders: str) -> set[str]:
    """The codes of all faults that the code in these folders or files gives."""
    found: set[str] = set()
    for folder in folders:
        paths = [ROOT / folder] if folder.endswith(".py") else sorted((ROOT / folder).glob("*.py"))
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add":
                    first = node.args[0] if node.args else None
                    if isinstance(first, ast.Constant) and isinstance(first.value, str) and len(node.args) > 1:
                        found.add(first.value)
    return found


def keywords() -> set[str]:
    return set(re.findall(r'"([a-z]+)"', (ROOT / "grammar/eps.lark").read_text(encoding="utf-8")))


def program_options() -> set[str]:
    template = (ROOT / "codegen/templates/main.jinja").read_text(encoding="utf-8")
    return set(re.findall(r'add_argument\("(--[a-z]+)"', template))


NAMES: dict[str, tuple[str, set[str]]] = {
    "keywords": ("docs/language.md", keywords()),
    "builtins": ("docs/language.md", set(BUILTINS) | set(Act)),
    "options of route": ("docs/language.md", option_names(RouteAttrs)),
    "values of options": ("docs/language.md", {*Score, *Choose, *GroupBy}),
    "options of gemm": ("docs/language.md", option_names(GemmAttrs) - {"out"}),
    "options of activations": ("docs/language.md", option_names(ActAttrs) - {"fn"}),
    "axes": ("docs/language.md", set(Axis)),
    "element types": ("docs/language.md", set(DType)),
    "metrics": ("docs/language.md", set(Metric)),
    "implementations": ("docs/language.md", {impl.name for impl in IMPLS}),
    "settings of a cluster": ("docs/language.md", set(CLUSTER_KEYS)),
    "devices": ("docs/language.md", set(DEVICES)),
    "passes": ("docs/architecture.md", {each.name for each in PIPELINE}),
    "stages": ("docs/architecture.md", {stage.name.lower() for stage in Stage}),
    "options of passes": ("docs/cli.md", {field.name for each in PIPELINE for field in fields(each)}),
    "hazards": ("docs/proof.md", set(Hazard)),
    "faults of the proof": ("docs/proof.md", codes("epsc/proof")),
    "options of a program": ("docs/emitted-program.md", program_options()),
}


@pytest.mark.parametrize("what", NAMES)
def test_every_name_is_documented(what: str) -> None:
    """Set as code on its page, so that a name that the code gains must gain a word there too."""
    page, names = NAMES[what]
    assert names
    missing = {name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", BY_NAME[page].code)}
    assert not missing, f"{page} says nothing of these {what}"


def test_every_command_and_option_is_documented() -> None:
    page = BY_NAME["docs/cli.md"].code
    said = []
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        said.append(f"epsc {name}")
        for option in command.params:
            if isinstance(option, click.Option):
                said += option.opts
    assert [each for each in said if not re.search(rf"{re.escape(each)}(?![\w-])", page)] == []
