"""What commands say to people: diagnostics, counts, and the exit codes."""

from __future__ import annotations

import sys

import click

from epsc.ir.errors import Diagnostic

EXIT_INPUT = 1
EXIT_PROGRAM = 3


def report(diagnostics: tuple[Diagnostic, ...]) -> None:
    """Print diagnostics to stderr, in colour on a terminal, with a count when there are several."""
    for diagnostic in diagnostics:
        text = str(diagnostic)
        if sys.stderr.isatty():
            colour = "red" if diagnostic.severity == "error" else "yellow"
            text = text.replace(
                f"{diagnostic.severity}:", click.style(f"{diagnostic.severity}:", fg=colour, bold=True), 1
            )
        click.echo(text, err=True)
    errors = sum(d.severity == "error" for d in diagnostics)
    if errors > 1:
        click.echo(f"{errors} errors", err=True)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
