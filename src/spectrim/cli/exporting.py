"""The verb of the command line that writes a model in the form in which other programs run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrim.cli import arguments as given
from spectrim.cli.help_texts import argument, option
from spectrim.cli.measuring import Cache
from spectrim.exporters import exporters

app = typer.Typer()


@app.command()
def export(
    model: Annotated[str, argument("exported")],
    to: Annotated[str, option("to", "--to")],
    output: Annotated[Path, option("export", "-o", "--output")],
    cache: Cache = None,
    trust_remote_code: Annotated[bool, option("trust-remote-code", "--trust-remote-code")] = False,
) -> None:
    """Write a model in the form in which another program runs it.

    For example:

    spectrim export small/ --to gguf -o small.gguf

    spectrim export small/ --to onnx -o small-onnx/

    spectrim export small/ --to dense -o plain/
    """
    exporters.check(to)
    given.prove_writable(output)
    from spectrim.report.progress import shown
    from spectrim.verbs.export import export as run

    with shown() as progress:
        told = run(
            model, to, output,
            cache=cache, trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
    for line in told:
        typer.echo(line)
    typer.echo(f"wrote {output}")
