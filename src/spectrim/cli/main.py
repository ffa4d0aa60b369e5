"""The command line. Nothing heavy is imported before a verb really runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args

import typer

from spectrim.cli import arguments as given
from spectrim.cli import exporting, measuring, serving, shrinking
from spectrim.cli.help_texts import HELP, argument, option
from spectrim.cli.measuring import Cache
from spectrim.errors import one_line
from spectrim.version import __version__

app = typer.Typer(
    name="spectrim",
    help="Make a pre-trained language model smaller, by what its loss can do without.",
    epilog="Try: spectrim shrink demo -o small/",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(measuring.app)
app.add_typer(exporting.app)
app.add_typer(serving.app)

# Typer carries its own copy of click; this is the class of all that is said wrongly in a command.
_USAGE: Any = typer.BadParameter.__base__

Kind = Literal[
    "methods", "formats", "allocators", "metrics", "tasks", "stages", "families", "exporters"
]
Refine = Literal["auto", "on", "off"]
Target = Literal["llama.cpp"]


def _tell_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"spectrim {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def spectrim(
    version: Annotated[
        bool, typer.Option("--version", help=HELP["version"], callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """Take what stands before the verb."""


@app.command()
def shrink(  # Typer reads a command's options from its parameters, so they stand here one by one
    output: Annotated[Path, option("output", "-o", "--output")],
    model: Annotated[str | None, argument("model")] = None,
    size: Annotated[str | None, option("size")] = None,
    fits: Annotated[str | None, option("fits")] = None,
    context: Annotated[int | None, option("room", default="4096")] = None,
    target: Annotated[Target | None, option("for", "--for")] = None,
    calibration: Annotated[str | None, option("calibration", default="default")] = None,
    tokens: Annotated[str | None, option("tokens", default="48x1024")] = None,
    keep: Annotated[str | None, option("keep", default="80% of linear")] = None,
    method: Annotated[str | None, option("method", default="loss_aware_svd")] = None,
    allocator: Annotated[str | None, option("allocator", default="global")] = None,
    format: Annotated[str | None, option("format", default="pivoted")] = None,
    refine: Annotated[Refine | None, option("refine", default="auto")] = None,
    protect: Annotated[list[str] | None, option("protect")] = None,
    trim_vocabulary: Annotated[str | None, option("trim-vocabulary")] = None,
    seed: Annotated[int | None, option("seed", default="0")] = None,
    minutes: Annotated[float | None, option("learning", "--minutes", default="none")] = None,
    plan: Annotated[Path | None, option("plan")] = None,
    recipe: Annotated[Path | None, option("recipe")] = None,
    cache: Cache = None,
    trust_remote_code: Annotated[bool, option("trust-remote-code", "--trust-remote-code")] = False,
    evaluate: Annotated[bool, option("evaluate", default=True)] = True,
    predictions: Annotated[bool, option("predictions", "--predictions")] = False,
) -> None:
    """Make a model smaller: a folder that transformers reads, or with --for a file for llama.cpp.

    Interrupted? Run the same command again; it continues where it was.

    For example:

    spectrim shrink meta-llama/Llama-3.2-1B --size 25% --calibration my.txt -o small/

    spectrim shrink demo --size 30% --minutes 30 -o small/

    spectrim shrink demo --recipe recipes/compact.yaml --keep "25% of linear bytes" -o small/

    spectrim shrink demo --plan small/plan.json -o again/

    spectrim shrink demo --for llama.cpp --size 90MB -o small.gguf
    """
    shrinking.run(shrinking.ShrinkOptions(**locals()))  # the parameters, by their names


@app.command()
def search(
    model: Annotated[str, argument("searched")],
    output: Annotated[Path, option("front", "-o", "--output")],
    sizes: Annotated[str, option("front-sizes", default=True)] = "60%,40%,25%,15%",
    minutes: Annotated[float | None, option("minutes", default="no learning")] = None,
    calibration: Annotated[str, option("calibration", default=True)] = "default",
    tokens: Annotated[str, option("tokens", default=True)] = "48x1024",
    seed: Annotated[int, option("seed", default=True)] = 0,
    cache: Cache = None,
) -> None:
    """Make the best model of each of several sizes, and one page on all: the Pareto front.

    Each size takes some minutes for the demo on two cores; with --minutes it learns too.

    Interrupted, or out of time? Run the same command again; finished sizes are kept.

    Example: spectrim search demo --sizes 60%,40%,25%,15%,10% --minutes 120 -o front/
    """
    from spectrim.recipe.recipe import Recipe

    wanted = [given.size(size) for size in sizes.split(",")]
    changes = {"calibration.text": calibration, "calibration.tokens": tokens, "seed": seed}
    asked = Recipe.build(None, {"model": model, **changes})
    if minutes is not None:
        given.minutes(minutes)
    given.prove_writable(output)
    from spectrim.model import sources
    from spectrim.report.progress import shown
    from spectrim.verbs.search import search as run

    with shown() as progress:
        front = run(
            asked, wanted, output, minutes=minutes,
            cache=cache or sources.default_cache(), progress=progress,
        )  # fmt: skip
    for size in front.left:
        typer.echo(f"no time was left for {size}; run the same command again")
    if front.made:
        typer.echo(f"wrote {output}; open {output / 'report.html'}")


@app.command(name="list")
def list_(kind: Annotated[Kind | None, argument("kind", default="all")] = None) -> None:
    """List what can be named on the command line and in recipes.

    Example: spectrim list methods
    """
    from spectrim.cli.console import entries

    for one in [kind] if kind else get_args(Kind):
        typer.echo(f"{one}:")
        found = entries(one)
        wide = max((len(name) for name, _ in found), default=0)
        for name, summary in found:
            typer.echo(f"  {name:<{wide}}  {summary}".rstrip())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; exit 2 and one line on what the user can put right."""
    try:
        # Else Typer itself writes what it cannot read, in a box of several lines.
        code = app(arguments, prog_name="spectrim", standalone_mode=False)
        if code == 130:  # how Typer passes an interrupt on
            _interrupted()
    except KeyboardInterrupt:
        _interrupted()
    except _USAGE as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # nothing was asked: its text is the help
            typer.echo(error.ctx.get_help())
            sys.exit(2)
        typer.echo(f"spectrim: error: {_unreadable(error)}", err=True)
        sys.exit(2)
    except Exception as error:
        message = one_line(error)
        if message is None:
            raise
        typer.echo(f"spectrim: error: {message}", err=True)
        sys.exit(2)
    sys.exit(code or 0)


def _unreadable(error: Any) -> str:
    """Return in one line which words Typer could not read."""
    message = " ".join(error.format_message().split()).rstrip(".?")
    message = message.replace("Value error, ", "").replace(". Did you", "; did you")
    command = error.ctx.command_path if error.ctx is not None else "spectrim"
    return f"{message[:1].lower()}{message[1:]}; see '{command} --help'"


def _interrupted() -> NoReturn:
    typer.echo("interrupted; run the same command again to continue", err=True)
    sys.exit(130)
