"""What a Program may hold."""

import pytest

from epsc.codegen import Program
from epsc.ir.errors import EpsError


def test_good_text() -> None:
    program = Program("good", "import os\nimport torch.nn as nn\n\n\ndef f():\n    import safetensors\n")
    program.verify()
    assert str(program) == program.text
    Program("kernels", "try:\n    import triton\nexcept ImportError:\n    triton = None\n").verify()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def", "is not Python"),
        ("import numpy\n", "line 1 imports `numpy`"),
        ("from epsc.ir import x\n", "imports `epsc`"),
        ("from . import x\n", "imports `.`"),
        ("import safetensors\n", "imports `safetensors`"),
        ("def f():\n    import triton\n", "line 2 imports `triton`"),
        ("import triton\n", "line 1 imports `triton`"),
        ("try:\n    import triton\nexcept ValueError:\n    pass\n", "line 2 imports `triton`"),
        ("def f():\n    try:\n        import triton\n    except ImportError:\n        pass\n", "line 3 imports"),
        ("try:\n    import numpy\nexcept ImportError:\n    pass\n", "line 2 imports `numpy`"),
        ("try:\n    pass\nexcept ImportError:\n    import triton\n", "line 4 imports `triton`"),
        ("eval('1')\n", "calls `eval`"),
        ("x = 'é'\n", "beyond ASCII"),
        ("x = 1\0\n", "is not Python"),
    ],
)
def test_bad_text(text: str, fault: str) -> None:
    with pytest.raises(EpsError) as error:
        Program("bad", text).verify()
    assert fault in str(error.value)


@pytest.mark.parametrize("name", ["a b", "", "class", "../x"])
def test_bad_name(name: str) -> None:
    with pytest.raises(EpsError, match="no name for a Python file"):
        Program(name, "").verify()
