"""The command line. Nothing heavy is imported before a verb really runs."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args

import typer

from spectrim.errors import SpectrimError, one_line

app = typer.Typer(
    name="spectrim",
    help="Make a pre-trained language model smaller, by what its loss can do without.",
    epilog="Try: spectrim shrink demo --keep '80% of linear' -o small/",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_HELP = {
    "model": "Hub name, model folder, GGUF file, or 'demo'. May be left out where --recipe names "
    "one.",
    "output": "Folder to write: the smaller model, its recipe, plan and scores.",
    "keep": "The part that stays: '80% of linear' (numbers of the linear maps inside the blocks) "
    "or '60%' (bytes of the whole model).",
    "calibration": "Text to read: a .txt or .jsonl file, a data set's name, or 'default' for the "
    "built-in mix. The closer to later use, the better.",
    "tokens": "How much to read: sequences x tokens in each, such as 128x2048.",
    "method": "How one map is decomposed; see 'spectrim list methods'.",
    "allocator": "How the budget is shared among the maps; see 'spectrim list allocators'.",
    "format": "What is stored for a map; see 'spectrim list formats'.",
    "refine": "Solve the factors again on what the smaller model really delivers; auto keeps that "
    "where it helps on text set aside.",
    "protect": "Leave sites dense whose name, role or 'block N' this regular expression finds, "
    "such as 'down' or 'block 0$'. May be repeated.",
    "seed": "For everything drawn at random; same seed, same bits.",
    "no-heal": "Do not train afterwards. Nothing does yet, so this has no effect.",
    "plan": "Replay a plan.json bit for bit instead of allocating; it says what to keep.",
    "recipe": "Start from a recipe, such as recipes/default.yaml; other options change it.",
    "cache": "Folder for converted models and statistics, shared by all runs.",
    "trust-remote-code": "Run code that comes with the model.",
    "evaluate": "Measure dense and smaller model beside each other at the end.",
    "predictions": "Also measure the loss at several budgets beside what the plan's currency "
    "predicts for them; the report plots both.",
    "measured": "Folder or name of the model to measure.",
    "text": "Held-out text: a .txt or .jsonl file, a data set's name, or 'default'.",
    "against": "The model to compare with.",
    "json": "Also write the scores to this file.",
    "inspected": "Folder of a smaller model, or any model: then its sites.",
    "as-json": "Print JSON instead of a table.",
    "folder": "Folder that 'spectrim shrink' wrote.",
    "page": "File to write.",
    "kind": "Only this kind.",
}


def _option(name: str, *flags: str, default: str | bool = False) -> Any:
    """Return an option with its help; default is what is shown where the value may be None."""
    return typer.Option(*flags, help=_HELP[name], show_default=default)


def _argument(name: str, default: str | bool = False) -> Any:
    return typer.Argument(help=_HELP[name], show_default=default)


Cache = Annotated[Path | None, _option("cache", default="$SPECTRIM_CACHE, else ~/.cache/spectrim")]
Kind = Literal["methods", "formats", "allocators", "metrics", "stages", "families"]
Refine = Literal["auto", "on", "off"]


@app.command()
def shrink(  # options are listed flat for Typer; nothing else here takes more than six
    output: Annotated[Path, _option("output", "-o", "--output")],
    model: Annotated[str | None, _argument("model")] = None,
    keep: Annotated[str | None, _option("keep", default="80% of linear")] = None,
    calibration: Annotated[str | None, _option("calibration", default="default")] = None,
    tokens: Annotated[str | None, _option("tokens", default="48x1024")] = None,
    method: Annotated[str | None, _option("method", default="loss_aware_svd")] = None,
    allocator: Annotated[str | None, _option("allocator", default="global")] = None,
    format: Annotated[str | None, _option("format", default="pivoted")] = None,
    refine: Annotated[Refine | None, _option("refine", default="auto")] = None,
    protect: Annotated[list[str] | None, _option("protect")] = None,
    seed: Annotated[int | None, _option("seed", default="0")] = None,
    no_heal: Annotated[bool, _option("no-heal", "--no-heal")] = False,
    plan: Annotated[Path | None, _option("plan")] = None,
    recipe: Annotated[Path | None, _option("recipe")] = None,
    cache: Cache = None,
    trust_remote_code: Annotated[bool, _option("trust-remote-code", "--trust-remote-code")] = False,
    evaluate: Annotated[bool, _option("evaluate", default=True)] = True,
    predictions: Annotated[bool, _option("predictions", "--predictions")] = False,
) -> None:
    """Make a model smaller and write it as a model folder that transformers reads.

    Interrupted? Run the same command again; it continues where it was.

    For example:

    spectrim shrink demo --keep "80% of linear" -o small/

    spectrim shrink meta-llama/Llama-3.2-1B --keep 60% --calibration my.txt --tokens 128x2048 -o x/

    spectrim shrink demo --plan small/plan.json -o again/
    """
    from spectrim.recipe import Recipe

    if model is None and recipe is None:
        raise SpectrimError("no model is named; name one, such as 'demo', or a --recipe that does")
    if plan is not None:
        said = {"keep": keep, "method": method, "allocator": allocator, "format": format}
        said |= {"calibration": calibration, "tokens": tokens, "refine": refine}
        _plan_says_it(plan, {**said, "protect": protect, "seed": seed})
    changes = {
        "model": model,
        "keep": keep,
        "calibration.text": calibration,
        "calibration.tokens": tokens,
        "factorize.method": method,
        "factorize.allocator": allocator,
        "factorize.format": format,
        "factorize.refine": refine,
        "factorize.protect": protect or None,
        "seed": seed,
        "trust_remote_code": trust_remote_code or None,
    }
    asked = Recipe.build(recipe, changes)
    _can_write(output)
    from spectrim import pipeline
    from spectrim.report import terminal
    from spectrim.report.progress import shown

    with shown() as progress:
        pipeline.shrink(
            asked,
            output,
            cache=cache,
            plan=plan,
            evaluate=evaluate,
            predictions=predictions,
            progress=progress,
        )
    if evaluate:
        terminal.show(json.loads((output / "scores.json").read_text(encoding="utf-8")))
    typer.echo(f"wrote {output}" + (f"; open {output / 'report.html'}" if evaluate else ""))


@app.command()
def evaluate(
    folder: Annotated[str, _argument("measured")],
    text: Annotated[str, _option("text", default=True)] = "default",
    against: Annotated[
        str | None, _option("against", default="what the folder was made from")
    ] = None,
    tokens: Annotated[str, _option("tokens", default=True)] = "16x1024",
    json_path: Annotated[Path | None, _option("json", "--json")] = None,
    cache: Cache = None,
) -> None:
    """Measure quality, size and speed of a model beside another, in one run.

    Example: spectrim evaluate small/ --text held_out.txt --against demo --json scores.json
    """
    from spectrim.recipe import parse_tokens

    parse_tokens(tokens)
    if json_path is not None:
        _can_write(json_path)
    from spectrim import evaluation
    from spectrim.report import terminal
    from spectrim.report.progress import shown

    with shown() as progress:
        scores = evaluation.evaluate(
            folder,
            text=text,
            against=against,
            tokens=tokens,
            cache=cache,
            json_path=json_path,
            progress=progress,
        )
    terminal.show(scores)


@app.command()
def inspect(
    model: Annotated[str, _argument("inspected")],
    as_json: Annotated[bool, _option("as-json", "--json")] = False,
    cache: Cache = None,
) -> None:
    """Show what is stored where, per site, beside the dense shapes.

    Example: spectrim inspect small/
    """
    from spectrim import console, inspection

    found = inspection.inspect(model, cache)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        console.show_sites(found)


@app.command()
def report(
    folder: Annotated[Path, _argument("folder")],
    output: Annotated[
        Path | None, _option("page", "-o", "--output", default="FOLDER/report.html")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a smaller model.

    Example: spectrim report small/ -o report.html
    """
    target = output or folder / "report.html"
    _can_write(target)
    from spectrim.report.page import write_page

    write_page(folder, target)
    typer.echo(f"wrote {target}")


@app.command(name="list")
def list_(kind: Annotated[Kind | None, _argument("kind", default="all")] = None) -> None:
    """List what can be named on the command line and in recipes.

    Example: spectrim list methods
    """
    for one in [kind] if kind else get_args(Kind):
        typer.echo(f"{one}:")
        for name, summary in _entries(one):
            typer.echo(f"  {name:<16} {summary}".rstrip())


def _entries(kind: str) -> list[tuple[str, str]]:
    if kind == "families":
        from spectrim.architectures import ARCHITECTURES

        return [(name, "") for name in sorted(ARCHITECTURES)]
    from spectrim.registry import Registry

    registry = Registry(kind.removesuffix("s"), f"spectrim.{kind}")
    return [(name, registry.summary(name)) for name in registry.names()]


def _plan_says_it(plan: Path, said: Mapping[str, object]) -> None:
    if not plan.is_file():
        raise SpectrimError(f"there is no plan file '{plan}'; check the path")
    for option, value in said.items():
        if value is not None:
            raise SpectrimError(f"--plan already says the {option}; leave out --{option}")


def _can_write(target: Path) -> None:
    """Prove that the target can be made, before hours are spent on what goes there."""
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:
        # Permission bits say nothing to root, or about a read-only disk; trying does. The file has
        # no name, so that nothing is left even where the process is killed here.
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise SpectrimError(f"cannot write '{target}'; {error.strerror}: '{parent}'") from error


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; exit 2 and one line on what the user can put right."""
    try:
        app(arguments)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as leaving:
        if leaving.code == 130:  # how Typer passes an interrupt on
            _interrupted()
        raise
    except Exception as error:
        message = one_line(error)
        if message is None:
            raise
        typer.echo(f"spectrim: error: {message}", err=True)
        sys.exit(2)
    sys.exit(0)


def _interrupted() -> NoReturn:
    typer.echo("interrupted; run the same command again to continue", err=True)
    sys.exit(130)
