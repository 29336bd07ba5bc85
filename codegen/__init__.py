"""Writers: a schedule, written out as one readable program."""

from epsc.codegen.emit import emit
from epsc.codegen.program import Program

__all__ = ["Program", "emit"]
