"""`epsc check` answers at once because nothing is loaded that it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "deepseek_v2.eps"
HEAVY = ("torch", "triton", "networkx", "jinja2", "epsc.bench", "epsc.calibrate", "epsc.codegen", "epsc.render.html")


def test_check_loads_only_what_it_needs() -> None:
    from epsc.cli import IN_MODULES

    code = f"""
import sys
from epsc import cli
sys.argv = ["epsc", "check", {str(EXAMPLE)!r}]
cli.main()
print(*(name for name in sys.modules if name.startswith("epsc.commands.")), sep="\\n")
print(*(name for name in {HEAVY!r} if name in sys.modules), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "epsc.commands.report" in loaded  # else names are looked for that nothing has
    assert not loaded & {f"epsc.commands.{name}" for name in IN_MODULES}
    assert not loaded & set(HEAVY)
