"""Writers: a schedule, written out as one readable program."""

from epsc.codegen.emit import emit, emit_plans
from epsc.codegen.program import Program

__all__ = ["Program", "emit", "emit_plans"]
