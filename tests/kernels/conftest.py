"""Kernels as modules, under Triton's interpreter: it runs them on the CPU, one program after the other."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from epsc.codegen.triton_kernels import head

Load = Callable[[str], ModuleType]
IMPORTS = """from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

"""


@pytest.fixture
def load(tmp_path: Path, interpreted: None) -> Iterator[Load]:
    """The module of a kernel's text. Triton reads the source of a kernel, so it must be a file."""
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
