"""Kernels as modules, under Triton's interpreter: it runs them on the CPU, one program after the other."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from epsc.codegen.triton_kernels import head

Load = Callable[[str], ModuleType]
IMPORTS = """from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """The module of a kernel's text. Triton reads the source of a kernel, so it must be a file."""
    triton = pytest.importorskip("triton", reason="triton is not installed: it is there for Linux only")
    # Triton asks each time that it makes a kernel, not only when it is imported.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True, raising=False)
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        """Triton 3.6 makes a loop bound of an array of one number, which numpy 2.4 no longer takes for a number."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
    made = []

    def load(text: str) -> ModuleType:
        path = tmp_path / f"kernels_{len(made)}.py"
        path.write_text(IMPORTS + head() + text)
        spec = importlib.util.spec_from_file_location(f"{tmp_path.name}_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        made.append(module.__name__)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in made:
        del sys.modules[name]
