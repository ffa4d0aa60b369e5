"""What `spectrim shrink` does with its options: a recipe of them, the run, and what it tells."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spectrim.cli import arguments as given
from spectrim.errors import SpectrimError
from spectrim.recipe.sizes import parse_bytes

if TYPE_CHECKING:
    from spectrim.model.runtime import Size
    from spectrim.recipe.recipe import Keep, Recipe

LOADING = "loading libraries"  # torch and transformers: seconds, in which nothing else is told


SIZE = "25%"  # where neither a size nor anything of a recipe is given


@dataclass(frozen=True)
class ShrinkOptions:
    """The options of `spectrim shrink` by their names; None where one was not given."""

    output: Path
    model: str | None
    keep: str | None
    size: str | None
    fits: str | None
    context: int | None
    target: str | None
    calibration: str | None
    tokens: str | None
    method: str | None
    allocator: str | None
    format: str | None
    refine: str | None
    protect: list[str] | None
    trim_vocabulary: str | None
    seed: int | None
    minutes: float | None
    plan: Path | None
    recipe: Path | None
    cache: Path | None
    trust_remote_code: bool
    evaluate: bool
    predictions: bool

    def refuse(self) -> None:
        """Raise SpectrimError where no model is named, or two options decide the same."""
        if self.model is None and self.recipe is None:
            raise SpectrimError(
                "no model is named; name one, such as 'demo', or a --recipe that does"
            )
        factorize: dict[str, object] = {
            "keep": self.keep,
            "method": self.method,
            "allocator": self.allocator,
            "format": self.format,
            "refine": self.refine,
            "protect": self.protect or None,
        }
        if self.plan is not None:
            text = {"calibration": self.calibration, "tokens": self.tokens}
            others = {"seed": self.seed, "trim-vocabulary": self.trim_vocabulary}
            given.refuse_beside_plan(self.plan, {**factorize, **text, **others})
        if self.size is not None or self.fits is not None or self.target is not None:
            files = {"recipe": self.recipe, "plan": self.plan}
            name = "size" if self.size is not None else "fits" if self.fits is not None else "for"
            given.refuse_beside_size({**files, **factorize}, name)
        if self.trim_vocabulary is not None and self.target is not None:
            raise SpectrimError(
                f"--trim-vocabulary does not go with --for {self.target}; trim first, by a recipe "
                "with the stage trim_vocabulary alone, and shrink the folder that it makes"
            )
        if self.predictions and (self._sized or self.target is not None):
            raise SpectrimError(
                "--predictions are of cuts, and a size takes bits; name the cuts, such as by "
                "--keep '80% of linear', or leave out --predictions"
            )
        self._refuse_sizes()

    def _refuse_sizes(self) -> None:
        """Raise SpectrimError where sizes contradict each other, or one is missing."""
        if self.size is not None and self.fits is not None:
            raise SpectrimError("--size and --fits both say how large it may be; leave out one")
        if self.context is not None and self.fits is None:
            raise SpectrimError("--context is for --fits, whose memory it is a part of; give both")
        if self.target is not None and self.size is None and self.fits is None:
            raise SpectrimError(
                f"--for {self.target} needs a size; add --size 600MB, --size 40% or --fits 4GB"
            )
        if self.minutes is not None and self.target is not None:
            raise SpectrimError(f"--for {self.target} never learns; leave out --minutes")
        if self.minutes is not None and not self._sized:
            raise SpectrimError(
                "--minutes is for --size and --fits; here the recipe's own stages say how long it "
                "learns"
            )
        if self.minutes is not None:
            given.minutes(self.minutes)

    def build(self) -> Recipe:
        """Return the recipe: that of the file, or the default one, changed by the options.

        Raises:
            SpectrimError: an option has a value that cannot be, or no stage spends the budget.
        """
        from spectrim.recipe.recipe import Recipe

        changes = {
            "model": self.model,
            "keep": self.keep,
            "calibration.text": self.calibration,
            "calibration.tokens": self.tokens,
            "factorize.method": self.method,
            "factorize.allocator": self.allocator,
            "factorize.format": self.format,
            "factorize.refine": self.refine,
            "factorize.protect": self.protect or None,
            "seed": self.seed,
            "trust_remote_code": self.trust_remote_code or None,
        }
        recipe = Recipe.build(self.recipe, changes)
        if self.keep is not None and recipe.factorize is None:
            raise SpectrimError(
                "the recipe has no stage factorize; leave out --keep, or add the stage"
            )
        if self.trim_vocabulary is not None:
            recipe = recipe.trimmed(self.trim_vocabulary)
        return recipe

    def budget(self) -> Keep | Size | None:
        """Return the size to reach, None where a recipe says what is done."""
        from spectrim.model.runtime import TRANSFORMERS, Size

        if self.fits is not None:
            memory, engine = parse_bytes(self.fits, "fits"), self.target or TRANSFORMERS
            return Size(memory=memory, context=self.context, engine=engine)
        if self.size is not None or self._sized:
            return given.size(SIZE if self.size is None else self.size)
        return None

    @property
    def _sized(self) -> bool:
        """Whether a size decides what is done, as it does where nothing else is said."""
        recipes = (self.recipe, self.plan, self.keep, self.method, self.allocator, self.format,
                   self.refine, self.protect or None)  # fmt: skip
        given_size = self.size is not None or self.fits is not None
        return given_size or (self.target is None and all(one is None for one in recipes))

    def file_size(self) -> Size:
        """Return how large a single file may be.

        Raises:
            SpectrimError: the size is one of linear maps.
        """
        from spectrim.model.runtime import Size

        budget = self.budget()
        if isinstance(budget, Size):
            return budget
        if budget is None or budget.of != "bytes":
            raise SpectrimError(
                f"--for {self.target} makes one file; give the size of all of it, such as '600MB' "
                "or '40%'"
            )
        return Size(part=budget.fraction)


def run(options: ShrinkOptions) -> None:
    """Make a model smaller as the options say, and tell what was made.

    Raises:
        SpectrimError: anything that the user can put right.
    """
    options.refuse()
    if options.target is not None:
        _one_file(options)
        return
    recipe, budget, why = options.build(), options.budget(), None
    given.prove_writable(options.output)
    from spectrim.model import sources
    from spectrim.processes import process
    from spectrim.report.progress import shown
    from spectrim.verbs import auto
    from spectrim.verbs.shrink import shrink

    with shown() as progress:
        if budget is not None:
            recipe, why = auto.choose(
                recipe, budget, options.output, cache=options.cache or sources.default_cache(),
                progress=progress, minutes=options.minutes,
            )  # fmt: skip
        shrink(
            recipe, options.output, cache=options.cache, plan=options.plan,
            evaluate=options.evaluate, predictions=options.predictions, why=why, progress=progress,
        )  # fmt: skip
    if not process():  # the first one of several tells
        _tell(options, why)


def _one_file(options: ShrinkOptions) -> None:
    """Make a single file for another engine, and tell what was made."""
    from spectrim.report.progress import shown

    recipe = options.build()
    given.prove_writable(options.output)
    with shown() as progress:
        progress(0, 1, LOADING)
        from spectrim.model import sources
        from spectrim.verbs.for_llama_cpp import for_llama_cpp

        progress(1, 1, LOADING)
        cache = options.cache or sources.default_cache()
        size = options.file_size()
        made = for_llama_cpp(recipe, size, options.output, cache=cache, progress=progress)
    typer.echo(f"{made}\nwrote {options.output}")


def _tell(options: ShrinkOptions, why: str | None) -> None:
    from spectrim.report import terminal

    output, measured = options.output, options.evaluate
    if measured:
        terminal.show(json.loads((output / "scores.json").read_text(encoding="utf-8")))
    if why is not None:
        typer.echo(why)
    typer.echo(f"wrote {output}" + (f"; open {output / 'report.html'}" if measured else ""))
