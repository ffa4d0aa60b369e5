"""What learning the rounding wins, and in how many minutes: one run, one table.

    python benchmarks/learned_rounding.py -o run/ [--sizes int2,15%] [--chains both]

The demo model off its grid (rotated.py, or --model), all maps in so many bits or in mixed bits at a
part of their bytes, calibrated and healed on disjoint mixed text (mixed_text.py), measured behind
every stage as in heal.py. "codes" learns the rounding block by block, "distil" trains scales,
offsets and norms end to end in as many steps, "both" one after the other, half of the steps each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heal import ABOUT, LENGTH, healed
from measuring import (
    ROTATED,
    arguments,
    commits_of,
    excess_of,
    keep_row,
    known_rows,
    publish,
    read_arguments,
    two_halves,
)
from mixed_text import mixed
from one_line_errors import told
from rotated import chosen

from spectrim.recipe.recipe import Recipe

CUT: dict[str, Any] = {
    "factorize": {
        "method": "loss_aware_svd,loss_aware_neuron_selection",
        "format": "low_rank",
        "refine": "off",
        "bits": [2, 3, 4, 8],
    }
}
SEQUENCES = 192  # of LENGTH tokens, that are healed on


def main() -> None:
    """Run all chains at all sizes, resuming, and write the run."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the dense model; by default output/rotated")
    parser.add_argument("--sizes", default="int2,int3", help="bits of all maps, or parts")
    parser.add_argument("--chains", default="codes,distil,both", help="which of these")
    parser.add_argument("--steps", type=int, default=200, help="for each block, where alone")
    parser.add_argument("--tokens", default="48x1024", help="of the calibration text")
    parser.add_argument("--keep", default="", help="which sites of int2 and the like stay bf16")
    asked = read_arguments(parser)
    folder = chosen(asked)
    first, second = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    calibration, healing = mixed(asked.data, first, asked.output)
    made = chains(str(healing), asked.steps)
    for size in asked.sizes.split(","):
        for label in asked.chains.split(","):
            recipe = Recipe.model_validate(
                {
                    "model": str(folder), **packed(size, asked.keep, made[label]),
                    "calibration": {"text": str(calibration), "tokens": asked.tokens},
                }
            )  # fmt: skip
            how = f"{size}, {asked.steps} steps, {asked.tokens}, {asked.keep}"
            keep_row(
                asked.output, how, label, 1.0,
                lambda recipe=recipe: healed(asked, recipe, second, healing),  # type: ignore[misc]
            )  # fmt: skip
    _write(asked.output, folder, asked.keep)


def packed(size: str, keep: str, after: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a recipe says of a size, int2 or 15%, and of what is done behind it.

    keep: a regular expression of sites that stay as they are; those alone are not trained either.
    """
    if size.startswith("int"):
        quantize = {"bits": int(size[3:]), "ends": 8, "protect": [keep] if keep else []}
        return {"stages": [{"quantize": quantize}, *after]}
    return {"keep": f"{size} of linear bytes", "stages": [CUT, {"quantize": {"ends": 8}}, *after]}


def chains(healing: str, steps: int) -> dict[str, list[dict[str, Any]]]:
    """Return the stages behind the rounding of every chain by its label, all of equal length."""
    codes: dict[str, Any] = {"learn_rounding": {"steps": steps}}
    distil: dict[str, Any] = {
        "distil": {"text": healing, "tokens": f"{SEQUENCES}x{LENGTH}", "steps": steps, "every": 50}
    }
    halves: list[dict[str, Any]] = [
        {name: {**options, "steps": steps // 2}}
        for name, options in (*codes.items(), *distil.items())
    ]
    return {"codes": [codes], "distil": [distil], "both": halves}


def _write(output: Path, folder: Path, keep: str) -> None:
    """Publish excess over the dense model behind every stage, paired by window."""
    known = known_rows(output)
    rows = []
    for key, row in known.items():
        dense, *after = row["stages"]
        texts = [name for name in dense if name not in ABOUT]
        rows += [
            {
                "table": "learned_rounding", "label": row["label"], "size": key.partition(",")[0],
                "after": found["after"], "minutes": found["minutes"],
                "excess": {text: excess_of(found[text], dense[text]) for text in texts},
            }
            for found in after
            if found["after"] != "factorize"
        ]  # fmt: skip
    about = (
        ROTATED if folder.name == "rotated" else f"demo off its 4-bit grid ({folder.name}), bf16"
    )
    windows = f"{LENGTH} tokens: 8 of WikiText-2, 6 of each other text"
    commits = commits_of(known.values())
    note = f"Sites of '{keep}' stay in bf16." if keep else ""
    print(
        publish(
            output, "learned_rounding", rows,
            model=about, commit=commits, windows=windows, note=note,
        )
    )  # fmt: skip


if __name__ == "__main__":
    told(main)
