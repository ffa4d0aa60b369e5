"""The command line. Nothing heavy is imported before a verb really runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn, get_args

import typer

from spectrim import arguments as given
from spectrim.errors import SpectrimError, one_line
from spectrim.help_texts import argument, option

app = typer.Typer(
    name="spectrim",
    help="Make a pre-trained language model smaller, by what its loss can do without.",
    epilog="Try: spectrim shrink demo --keep '80% of linear' -o small/",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Cache = Annotated[Path | None, option("cache", default="$SPECTRIM_CACHE, else ~/.cache/spectrim")]
Kind = Literal["methods", "formats", "allocators", "metrics", "tasks", "stages", "families"]
Refine = Literal["auto", "on", "off"]
Suite = Literal["basic", "quick", "full"]
By = Literal["site", "role", "block"]
Increase = Literal["loss", "perplexity", "divergence"]


@app.command()
def shrink(  # options are listed flat for Typer; nothing else here takes more than six
    output: Annotated[Path, option("output", "-o", "--output")],
    model: Annotated[str | None, argument("model")] = None,
    keep: Annotated[str | None, option("keep", default="80% of linear")] = None,
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
    """
    from spectrim.recipe import Recipe

    if model is None and recipe is None:
        raise SpectrimError("no model is named; name one, such as 'demo', or a --recipe that does")
    if plan is not None:
        said = {"keep": keep, "method": method, "allocator": allocator, "format": format}
        said |= {"calibration": calibration, "tokens": tokens, "refine": refine}
        given.refuse_beside_plan(plan, {**said, "protect": protect, "seed": seed})
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
    asked = asked.unhealed() if no_heal else asked
    given.prove_writable(output)
    from spectrim import pipeline
    from spectrim.report import terminal
    from spectrim.report.progress import shown

    with shown() as progress:
        pipeline.shrink(asked, output, cache=cache, plan=plan, evaluate=evaluate,
                        predictions=predictions, progress=progress)  # fmt: skip
    if evaluate:
        terminal.show(json.loads((output / "scores.json").read_text(encoding="utf-8")))
    typer.echo(f"wrote {output}" + (f"; open {output / 'report.html'}" if evaluate else ""))


@app.command()
def evaluate(
    folder: Annotated[str, argument("measured")],
    text: Annotated[list[str] | None, option("text", default="default")] = None,
    against: Annotated[
        str | None, option("against", default="what the folder was made from")
    ] = None,
    tokens: Annotated[str, option("tokens", default=True)] = "16x1024",
    suite: Annotated[Suite, option("suite", default=True)] = "basic",
    tasks: Annotated[str | None, option("tasks", default="all of the suite")] = None,
    limit: Annotated[int | None, option("limit", default="as the suite says")] = None,
    data: Annotated[Path | None, option("data", default="$SPECTRIM_DATA, else the hub")] = None,
    seed: Annotated[int, option("seed", default=True)] = 0,
    fresh: Annotated[bool, option("fresh", "--fresh")] = False,
    json_path: Annotated[Path | None, option("json", "--json")] = None,
    cache: Cache = None,
) -> None:
    """Measure quality, size and speed of a model beside another, in one run.

    Interrupted? Run the same command again: what was answered is kept.

    For example:

    spectrim evaluate small/ --text held_out.txt --against demo --json scores.json

    spectrim evaluate small/ --suite quick --data data/ --json small/scores.json

    spectrim evaluate small/ --suite full --tasks arc_easy,boolq,winogrande --limit 200
    """
    from spectrim.recipe import parse_tokens

    parse_tokens(tokens)
    folder_of_data = given.data_folder(data)
    if limit is not None and limit < 1:
        raise SpectrimError(f"--limit {limit} asks nothing; expected 1 or more")
    if json_path is not None:
        given.prove_writable(json_path)
    from spectrim import evaluation
    from spectrim.metrics import Evaluation
    from spectrim.report import terminal
    from spectrim.report.progress import shown

    chosen = Evaluation(suite=suite, tasks=given.task_names(tasks), limit=limit, seed=seed,
                        fresh=fresh, data=folder_of_data)  # fmt: skip
    with shown() as progress:
        scores = evaluation.evaluate(
            folder,
            text=text or ["default"],
            against=against,
            tokens=tokens,
            tasks=chosen,
            cache=cache,
            json_path=json_path,
            progress=progress,
        )
    terminal.show(scores)


@app.command()
def inspect(
    model: Annotated[str, argument("inspected")],
    as_json: Annotated[bool, option("as-json", "--json")] = False,
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
def profile(
    model: Annotated[str, argument("profiled")],
    output: Annotated[Path, option("profile", "-o", "--output")],
    by: Annotated[By, option("by", default=True)] = "site",
    sizes: Annotated[str, option("sizes", default=True)] = "50%",
    cumulative: Annotated[bool, option("cumulative", "--cumulative")] = False,
    metric: Annotated[Increase, option("metric", default=True)] = "loss",
    sequences: Annotated[int | None, option("sequences", default="2")] = None,
    method: Annotated[str | None, option("method", default="loss_aware_svd")] = None,
    format: Annotated[str | None, option("format", default="pivoted")] = None,
    calibration: Annotated[str | None, option("calibration", default="default")] = None,
    tokens: Annotated[str | None, option("tokens", default="48x1024")] = None,
    seed: Annotated[int | None, option("seed", default="0")] = None,
    cache: Cache = None,
    trust_remote_code: Annotated[bool, option("trust-remote-code", "--trust-remote-code")] = False,
) -> None:
    """Measure how sensitive the loss is to every part of a model, cut one at a time.

    Interrupted? Run the same command again; it continues where it was.

    For example:

    spectrim profile demo --sizes "75%,50%,25%" -o profile/

    spectrim profile demo --by block --cumulative --metric perplexity -o profile/
    """
    from spectrim.recipe import Recipe

    changes = {
        "model": model,
        "calibration.text": calibration,
        "calibration.tokens": tokens,
        "factorize.method": method,
        "factorize.format": format,
        "factorize.rank_multiple": 1,
        "seed": seed,
        "trust_remote_code": trust_remote_code or None,
    }
    recipe, parts = Recipe.build(None, changes), given.parse_sizes(sizes)
    given.prove_writable(output)
    from spectrim import console, profiling
    from spectrim.report.progress import shown

    asked = profiling.Asked(by, parts, cumulative, metric, sequences)
    with shown() as progress:
        found = profiling.profile(recipe, output, asked, cache=cache, progress=progress)
    console.show_profile(found)
    typer.echo(f"wrote {output}; open {output / 'profile.html'}")


@app.command()
def report(
    folders: Annotated[list[Path], argument("folders")],
    output: Annotated[
        Path | None, option("page", "-o", "--output", default="FOLDER/report.html")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a smaller model, or about several.

    The first folder is the one that the page is about; the others stand beside it.

    For example:

    spectrim report small/ -o report.html

    spectrim report run/ run2/ run3/ -o report.html
    """
    target = output or folders[0] / "report.html"
    given.prove_writable(target)
    from spectrim.report.page import write_page

    write_page(folders[0], target, folders[1:])
    typer.echo(f"wrote {target}")


@app.command(name="list")
def list_(kind: Annotated[Kind | None, argument("kind", default="all")] = None) -> None:
    """List what can be named on the command line and in recipes.

    Example: spectrim list methods
    """
    from spectrim.console import entries

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
