"""emit: Schedule -> Program. Prepares the strings and lists that the templates write out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateNotFound

from epsc.codegen.context import context
from epsc.codegen.imports import imports
from epsc.codegen.lines import call
from epsc.codegen.program import Program
from epsc.codegen.regions import refuse
from epsc.ir.schedule import Schedule, Stage
from epsc.machine.device import Device


def emit(
    schedule: Schedule,
    *,
    spec_text: str,
    version: str,
    load: tuple[int, int],
    device: Device | None = None,
    settings: str = "",
) -> Program:
    """The program of a finished schedule.

    `spec_text` is the file that it came from, read with the options `settings`; `version` that of epsc; `load` the
    tokens per rank (fewest, most) that the schedule was made for; kernels are cut as measured on `device`. Raises
    EpsError for a schedule that is not finished, or that has no program.
    """
    return emit_plans(
        [(schedule, load)],
        schedule.name,
        spec_text=spec_text,
        version=version,
        device=device,
        settings=settings,
    )


def emit_plans(
    plans: Sequence[tuple[Schedule, tuple[int, int]]],
    name: str,
    *,
    spec_text: str,
    version: str,
    device: Device | None = None,
    settings: str = "",
) -> Program:
    """The program of finished schedules of one layer, each for a range of load from the least to the most, which takes
    one of them for each forward pass; `name`: what they are together. The rest as `emit`."""
    for schedule, _ in plans:
        if schedule.stage is not Stage.BUFFERED:
            stage = schedule.stage.name.lower()
            raise refuse(f"schedule `{schedule.name}` is at stage {stage}, not at its last, buffered")
    found = context(plans, name, spec_text, version, device, settings)
    environment = _environment()
    macros = environment.get_template("steps.jinja").module
    for item in (item for plan in found["plans"] for item in plan["blocks"]):
        block = item["block"]
        item["body"] = getattr(macros, block.template)(block.op, 12)
    body = environment.get_template("body.jinja").render(found)
    text = environment.get_template("program.jinja").render(found, imports=imports(body), body=body)
    program = Program(found["file_name"], text)
    program.verify()
    return program


class _Templates(BaseLoader):
    """The templates of this package, wherever it is installed."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str | None, Any]:  # noqa: ARG002
        path = resources.files("epsc.codegen") / "templates" / template
        if not path.is_file():
            raise TemplateNotFound(template)
        return path.read_text(encoding="utf-8"), None, lambda: True


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=_Templates(),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["write"] = _write
    return environment


def _write(head: str, args: tuple[str, ...] | list[str], indent: int) -> str:
    """A call, broken into lines where it is too long for one."""
    return "\n".join(call(head, args, indent=indent))
