"""The command line. Nothing heavy is imported before a verb really runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn, get_args

import typer

from spectrim.cli import arguments as given
from spectrim.cli import measuring
from spectrim.cli.help_texts import argument, option
from spectrim.cli.measuring import Cache
from spectrim.errors import SpectrimError, one_line

app = typer.Typer(
    name="spectrim",
    help="Make a pre-trained language model smaller, by what its loss can do without.",
    epilog="Try: spectrim shrink demo --keep '80% of linear' -o small/",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(measuring.app)

Kind = Literal["methods", "formats", "allocators", "metrics", "tasks", "stages", "families"]
Refine = Literal["auto", "on", "off"]


@app.command()
def shrink(  # options are listed flat for Typer; nothing else here takes more than six
    output: Annotated[Path, option("output", "-o", "--output")],
    model: Annotated[str | None, argument("model")] = None,
    keep: Annotated[str | None, option("keep", default="80% of linear")] = None,
    size: Annotated[str | None, option("size")] = None,
    calibration: Annotated[str | None, option("calibration", default="default")] = None,
    tokens: Annotated[str | None, option("tokens", default="48x1024")] = None,
    method: Annotated[str | None, option("method", default="loss_aware_svd")] = None,
    allocator: Annotated[str | None, option("allocator", default="global")] = None,
    format: Annotated[str | None, option("format", default="pivoted")] = None,
    refine: Annotated[Refine | None, option("refine", default="auto")] = None,
    protect: Annotated[list[str] | None, option("protect")] = None,
    seed: Annotated[int | None, option("seed", default="0")] = None,
    no_heal: Annotated[bool, option("no-heal", "--no-heal")] = False,
    plan: Annotated[Path | None, option("plan")] = None,
    recipe: Annotated[Path | None, option("recipe")] = None,
    cache: Cache = None,
    trust_remote_code: Annotated[bool, option("trust-remote-code", "--trust-remote-code")] = False,
    evaluate: Annotated[bool, option("evaluate", default=True)] = True,
    predictions: Annotated[bool, option("predictions", "--predictions")] = False,
) -> None:
    """Make a model smaller and write it as a model folder that transformers reads.

    Interrupted? Run the same command again; it continues where it was.

    For example:

    spectrim shrink demo --keep "80% of linear" -o small/

    spectrim shrink meta-llama/Llama-3.2-1B --keep 60% --calibration my.txt --tokens 128x2048 -o x/

    spectrim shrink demo --plan small/plan.json -o again/

    spectrim shrink demo --size 25% -o small/
    """
    from spectrim.recipe.recipe import Keep, Recipe

    if model is None and recipe is None:
        raise SpectrimError("no model is named; name one, such as 'demo', or a --recipe that does")
    if plan is not None:
        said = {"keep": keep, "method": method, "allocator": allocator, "format": format}
        said |= {"calibration": calibration, "tokens": tokens, "refine": refine}
        given.refuse_beside_plan(plan, {**said, "protect": protect, "seed": seed,
                                        "no-heal": no_heal or None})  # fmt: skip
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
    if size is not None:
        given.refuse_beside_size({"recipe": recipe, "plan": plan, "keep": keep, "method": method,
                                  "allocator": allocator, "format": format, "refine": refine,
                                  "protect": protect or None})  # fmt: skip
    asked = Recipe.build(recipe, changes)
    if keep is not None and asked.factorize is None:
        raise SpectrimError("the recipe has no stage factorize; leave out --keep, or add the stage")
    budget = None if size is None else Keep.parse(size, "size")
    asked = asked.unhealed() if no_heal else asked
    given.prove_writable(output)
    from spectrim.model import sources
    from spectrim.processes import process
    from spectrim.report import terminal
    from spectrim.report.progress import shown
    from spectrim.verbs import auto
    from spectrim.verbs.shrink import shrink as run

    why = None
    with shown() as progress:
        if budget is not None:
            asked, why = auto.choose(
                asked, budget, output, cache=cache or sources.default_cache(),
                progress=progress, heal=not no_heal,
            )  # fmt: skip
        run(asked, output, cache=cache, plan=plan, evaluate=evaluate,
                        predictions=predictions, why=why, progress=progress)  # fmt: skip
    if process():  # the first one of several tells
        return
    if evaluate:
        terminal.show(json.loads((output / "scores.json").read_text(encoding="utf-8")))
    if why is not None:
        typer.echo(why)
    typer.echo(f"wrote {output}" + (f"; open {output / 'report.html'}" if evaluate else ""))


@app.command()
def search(
    model: Annotated[str, argument("searched")],
    output: Annotated[Path, option("front", "-o", "--output")],
    sizes: Annotated[str, option("front-sizes", default=True)] = "60%,40%,25%,15%",
    minutes: Annotated[float | None, option("minutes", default="no limit")] = None,
    calibration: Annotated[str, option("calibration", default=True)] = "default",
    tokens: Annotated[str, option("tokens", default=True)] = "48x1024",
    seed: Annotated[int, option("seed", default=True)] = 0,
    cache: Cache = None,
) -> None:
    """Make the best model of each of several sizes, and one page on all: the Pareto front.

    Interrupted, or out of time? Run the same command again; finished sizes are kept.

    Example: spectrim search demo --sizes 60%,40%,25%,15%,10% --minutes 120 -o front/
    """
    from spectrim.recipe.recipe import Keep, Recipe

    wanted = [Keep.parse(size, "size") for size in sizes.split(",")]
    changes = {"calibration.text": calibration, "calibration.tokens": tokens, "seed": seed}
    asked = Recipe.build(None, {"model": model, **changes})
    if minutes is not None and minutes <= 0:
        raise SpectrimError(f"--minutes {minutes:g} leaves no time; give more than 0")
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
