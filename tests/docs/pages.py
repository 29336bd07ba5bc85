"""The documentation as data: its pages, their fenced blocks, and how a shown output is compared with a real one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE_SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block. `info` is what stands behind the backquotes; `output` is the ```text block right behind it."""

    page: Path
    line: int
    info: str
    text: str
    output: str | None
    start: int
    """Offset of `text` in the page."""

    @property
    def id(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Page:
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        found = list(_FENCE.finditer(self.text))
        blocks = []
        for match, after in zip(found, [*found[1:], None], strict=False):
            # Nothing but a blank line may stand between a block and its output.
            own = after and after[1] == "text" and not self.text[match.end() : after.start()].strip()
            line = self.text.count("\n", 0, match.start()) + 1
            blocks.append(Block(self.path, line, match[1].strip(), match[2], after[2] if own else None, match.start(2)))
        return blocks

    @cached_property
    def prose(self) -> str:
        return _FENCE.sub("", self.text)

    @cached_property
    def code(self) -> str:
        """Everything that is set as code, in blocks and in lines."""
        return "\n".join([*(block.text for block in self.blocks), *_CODE_SPAN.findall(self.prose)])


PAGES = [Page(ROOT / "README.md"), Page(ROOT / "CHANGELOG.md"), Page(ROOT / "CONTRIBUTING.md")]
PAGES += [Page(path) for path in sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [block for page in PAGES for block in page.blocks]
BY_NAME = {str(page.path.relative_to(ROOT)): page for page in PAGES}


def matches(shown: str, real: str) -> bool:
    """Whether `real` is what `shown` says: a line `...` stands for any lines, `...` in a line for any text."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r"\n"
        for line in shown.splitlines()
    )
    return re.fullmatch(pattern, "".join(f"{line.rstrip()}\n" for line in real.splitlines())) is not None


def with_frame(text: str) -> str:
    """An ```eps block as a whole file: one without a layer speaks of the page's `eps frame`; so does one without a
    cluster, if its own layer routes."""
    frame = next(block.text for block in BLOCKS if block.info == "eps frame")
    layer, cluster = re.split(r"^(?=cluster )", frame, flags=re.MULTILINE)
    if not re.search(r"^layer ", text, re.MULTILINE):
        text += "\n" + layer
    if not re.search(r"^cluster ", text, re.MULTILINE):
        text += "\n" + cluster
    return text
