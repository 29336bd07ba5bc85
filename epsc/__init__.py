"""epsc compiles Mixture-of-Experts layers into readable, proven, overlapped programs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epsc.api.compiling import Compiled, compile
    from epsc.api.graphs import capture
    from epsc.api.model import compile_model
    from epsc.api.moefy import moefied
    from epsc.api.tracing import Traced, trace
    from epsc.grammar.trace.seam import mark_experts

__version__ = "0.1.0"

_LATE = {
    "Compiled": "epsc.api.compiling",
    "Traced": "epsc.api.tracing",
    "capture": "epsc.api.graphs",
    "compile": "epsc.api.compiling",
    "compile_model": "epsc.api.model",
    "mark_experts": "epsc.grammar.trace.seam",
    "moefied": "epsc.api.moefy",
    "trace": "epsc.api.tracing",
}
"""What needs torch, and so is loaded when it is asked for: `epsc check` does without."""

__all__ = [
    "Compiled",
    "Traced",
    "__version__",
    "capture",
    "compile",
    "compile_model",
    "mark_experts",
    "moefied",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module `epsc` has no attribute `{name}`")
    return getattr(import_module(_LATE[name]), name)
