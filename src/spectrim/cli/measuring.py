"""The verbs of the command line that look at models: evaluate, inspect, profile, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from spectrim.cli import arguments as given
from spectrim.cli.help_texts import argument, option
from spectrim.errors import SpectrimError

app = typer.Typer()

Cache = Annotated[Path | None, option("cache", default="$SPECTRIM_CACHE, else ~/.cache/spectrim")]
Suite = Literal["basic", "quick", "full"]
By = Literal["site", "role", "block"]
Increase = Literal["loss", "perplexity", "divergence"]


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
    from spectrim.recipe.options import parse_tokens

    parse_tokens(tokens)
    folder_of_data = given.data_folder(data)
    if limit is not None and limit < 1:
        raise SpectrimError(f"--limit {limit} asks nothing; expected 1 or more")
    if json_path is not None:
        given.prove_writable(json_path)
    from spectrim.metrics import Evaluation
    from spectrim.report import terminal
    from spectrim.report.progress import shown
    from spectrim.verbs.evaluate import evaluate as run

    chosen = Evaluation(suite=suite, tasks=given.task_names(tasks), limit=limit, seed=seed,
                        fresh=fresh, data=folder_of_data)  # fmt: skip
    with shown() as progress:
        scores = run(
            folder, text=text or ["default"], against=against, tokens=tokens, tasks=chosen,
            cache=cache, json_path=json_path, progress=progress,
        )  # fmt: skip
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
    from spectrim.cli import console
    from spectrim.verbs.inspect import inspect as run

    found = run(model, cache)
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
    from spectrim.recipe.recipe import Recipe

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
    from spectrim.cli import console
    from spectrim.report.progress import shown
    from spectrim.verbs.profile import Asked
    from spectrim.verbs.profile import profile as run

    asked = Asked(by, parts, cumulative, metric, sequences)
    with shown() as progress:
        found = run(recipe, output, asked, cache=cache, progress=progress)
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
