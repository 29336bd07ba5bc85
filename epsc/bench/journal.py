"""What was found so far, kept in a file: a run that dies tells how far it came, and at what."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Journal:
    path: Path | None
    found: dict[str, Any]

    def at(self, what: str) -> None:
        self.found["at"] = what
        self.save()

    def left_out(self, name: str, where: str, reason: str) -> str:
        """Note that a contender failed; the line to print."""
        self.found["failed"].append({"name": name, "where": where, "reason": reason})
        return f"{name} is left out, {where}: {reason}"

    def note(self, text: str) -> None:
        if text not in self.found["notes"]:
            self.found["notes"].append(text)

    def save(self) -> None:
        if self.path:
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
            part.replace(self.path)
