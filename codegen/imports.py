"""Imports: those of what a program can use that it does use."""

from __future__ import annotations

import re

_MODULES = ("argparse", "functools", "json", "math", "os", "platform", "sys", "tempfile", "threading", "time", "zlib")
_NAMES = {
    "collections": ("Counter",),
    "collections.abc": ("Callable", "Iterator", "Mapping", "Sequence"),
    "concurrent.futures": ("Future", "ThreadPoolExecutor"),
    "contextlib": ("contextmanager", "nullcontext"),
    "datetime": ("timedelta",),
    "itertools": ("accumulate", "pairwise"),
    "pathlib": ("Path",),
    "statistics": ("median", "quantiles"),
    "typing": ("Any", "NamedTuple"),
}
_TORCH = ("import torch", "import torch.distributed as dist", "import torch.nn.functional as F")


def imports(body: str) -> list[str]:
    """Import lines for the names that occur in `body`."""
    words = set(re.findall(r"[A-Za-z_]\w*", body))
    lines = [f"import {name}" for name in _MODULES if name in words]
    for module, names in _NAMES.items():
        if used := [name for name in names if name in words]:
            lines.append(f"from {module} import {', '.join(used)}")
    return [*lines, "", *_TORCH, "from torch import Tensor, nn"]
