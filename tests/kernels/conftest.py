"""Kernels as modules, under Triton's interpreter: it runs them on the CPU, one program after the other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest

from epsc.codegen.triton_kernels import head
from tests.programs.ranks import load_program

Load = Callable[[str], ModuleType]
IMPORTS = """from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

"""


@pytest.fixture
def load(tmp_path: Path, interpreted: None) -> Load:
    """The module of a kernel's text. Triton reads the source of a kernel, so it must be a file."""
    numbers = count()

    def load(text: str) -> ModuleType:
        path = tmp_path / f"kernels_{next(numbers)}.py"
        path.write_text(IMPORTS + head() + text)
        return load_program(path)

    return load
