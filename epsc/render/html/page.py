"""The page: data, style and script in one file. Nothing comes from elsewhere, and a policy says so to the browser.

Names in the data come from `.eps` files and traces, which nobody vouched for. They are packed (gzip, then base64), so
no byte of them is read as HTML; the script shows them as text only.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from epsc.render.html.side import Side, sides_data
from epsc.render.looks import LOOKS

_SCRIPTS = ("model.js", "labels.js", "timeline.js", "facts.js", "page.js")


def page(title: str, sides: Sequence[Side], fallback: str = "") -> str:
    """The HTML text. `fallback` is shown where scripts are off. The same sides give the same bytes."""
    style = _asset("page.css") + _colours()
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, _SCRIPTS)) + "\n})();\n"
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    fields = {
        "policy": policy,
        "title": html.escape(title),
        "fallback": html.escape(fallback),
        "style": style,
        "data": pack(page_data(title, sides)),
        "script": script,
    }
    # One pass from left to right: a field's text is never looked into for other fields.
    pieces = _asset("page.html").split("%%")
    return "".join(fields[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def page_data(title: str, sides: Sequence[Side]) -> dict[str, Any]:
    looks = [{"key": look.key, "words": look.words} for look in LOOKS]
    return {"title": title, "looks": looks, "sides": sides_data(sides)}


def pack(data: Any) -> str:
    """JSON as base64 of gzip: letters, digits, `+`, `/` and `=` only."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("utf-8"), 9, mtime=0)).decode("ascii")


def unpack(packed: str) -> Any:
    """What `pack` packed."""
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def _colours() -> str:
    light = "".join(f"--{look.key}:{look.light};" for look in LOOKS)
    dark = "".join(f"--{look.key}:{look.dark};" for look in LOOKS)
    return (
        f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark}}}\n"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _asset(name: str) -> str:
    return files("epsc.render.html").joinpath(name).read_text(encoding="utf-8")
