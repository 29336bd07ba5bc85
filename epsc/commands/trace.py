"""`epsc trace`: a MoE block written in torch, as a `.eps` file."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_type_hints

import click

from epsc import driver
from epsc.ir.errors import Diagnostic, EpsError, did_you_mean


@click.command()
@click.argument("block", metavar="PACKAGE.MODULE:CLASS")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="JSON: the fields of the config that the class takes, or its arguments by name.",
)
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), default="bf16", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write; stdout by default.")
@click.option("--name", default="", help="Name of the layer; that of the class by default.")
def trace(block: str, config: Path | None, dtype: str, output: Path | None, name: str) -> None:
    """Read a MoE block written in torch as a layer.

    The class is imported and made with random weights, so its code runs. What is read is verified against it: on
    several numbers of tokens, in fp32 and bf16. What the language cannot say is told on stderr.
    """
    import torch

    from epsc.api.tracing import trace as read  # noqa: PLC0415 - as above

    kind = _class(block)
    fields = _fields(config) if config else {}
    try:
        made = kind(**_arguments(kind, fields))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise EpsError(
            Diagnostic(
                "bad-config",
                f"`{block}` cannot be made: {type(error).__name__}: {error}",
                help="`--config` is a JSON file with the fields of its config, or its arguments by name",
            )
        ) from None
    torch_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    traced = read(made.to(torch_dtype).eval(), name=name)
    for note in traced.notes:
        click.echo(f"note: {note}", err=True)
    if output is None:
        click.echo(traced.text, nl=False)
        return
    driver.save(output, traced.text)
    click.echo(f"wrote {output}: {len(traced.weights)} weights, verified against {block}")


def _class(block: str) -> type:
    path, _, name = block.partition(":")
    if not path or not name:
        raise click.UsageError(f"`{block}` should read package.module:Class")
    if "" not in sys.path and os.fspath(Path.cwd()) not in sys.path:
        sys.path.insert(0, os.fspath(Path.cwd()))  # as `python -m` has it
    try:
        module: ModuleType = importlib.import_module(path)
    except ImportError as error:
        raise EpsError(Diagnostic("no-module", f"cannot import `{path}`: {error}")) from None
    found = getattr(module, name, None)
    if not isinstance(found, type):
        known = [each for each, value in vars(module).items() if isinstance(value, type)]
        raise EpsError(Diagnostic("unknown-name", f"`{path}` has no class `{name}`", help=did_you_mean(name, known)))
    return found


def _fields(path: Path) -> dict[str, Any]:
    source = driver.read(path)
    try:
        found = json.loads(source.text)
    except json.JSONDecodeError as error:
        raise EpsError(Diagnostic("not-json", f"{path}:{error.lineno}:{error.colno}: {error.msg}")) from None
    if not isinstance(found, dict):
        raise EpsError(Diagnostic("not-json", f"{path} should hold one JSON object"))
    return found


def _arguments(kind: type, fields: dict[str, Any]) -> dict[str, Any]:
    """What to call the class with: the fields themselves, or a config made of them if it takes one."""
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    if "config" not in parameters:
        return fields
    try:
        wanted = get_type_hints(kind.__init__).get("config")  # type: ignore[misc]
    except NameError:
        wanted = None
    config = wanted(**fields) if isinstance(wanted, type) else _guessed(kind, fields)
    places = {name: 0 for name in ("layer_idx", "layer_id") if name in parameters}
    return {"config": config, **places}


def _guessed(kind: type, fields: dict[str, Any]) -> Any:
    """A config for a class that does not say of which kind: the one config class beside it, or just the fields."""
    beside = vars(sys.modules[kind.__module__])
    known = [value for name, value in beside.items() if name.endswith("Config") and isinstance(value, type)]
    own = [value for value in known if not value.__name__.startswith("PreTrained")]
    return own[0](**fields) if len(own) == 1 else SimpleNamespace(**fields)
