"""The model card: README.md of an output folder, as the model hub reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from spectrim.model.licence import licence_of
from spectrim.report import notes, points, table, tasks
from spectrim.report.folder import Output, read
from spectrim.report.origin import DEMO, HUB_NAME, named
from spectrim.report.results import results

_DEMO = (DEMO, "apache-2.0")
_SOMEWHERE = "path/to/this/folder"

_OURS = """\
> **Import `spectrim` before you load this model.** Without `import spectrim`, transformers only
> warns of an unknown quantization method and leaves the factored maps at **random weights**: the
> model loads all the same, and writes nonsense.

```python
import spectrim  # first: it tells transformers how the factors are stored
"""
_STOCK = """\
Transformers loads this model as any other.

```python
"""

_BODY = """
# {title}

{first}from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained({name!r})
tokenizer = AutoTokenizer.from_pretrained({name!r})
```

{made}
{scores}{tasks}{known}{missing}{warnings}{recipe}{versions}"""


def write_card(folder: Path, *, base: Path | None = None, name: str = _SOMEWHERE) -> Path:
    """Write README.md into an output folder and return its path.

    Args:
        folder: what ``spectrim shrink`` wrote; scores.json may be missing.
        base: folder of the dense model; its card says the licence, if it has one.
        name: folder or hub name that the example loads. The folder's own name may change after
            this, so it is not taken.

    Raises:
        SpectrimError: a file of the folder is damaged.
    """
    made = card(read(folder, unmeasured=True), licence=licence_of(base), name=name)
    target = folder / "README.md"
    made.save(target)
    return target


def card(output: Output, *, licence: str | None = None, name: str = _SOMEWHERE) -> ModelCard:
    """Return the card of an output folder, its licence that of the dense model."""
    model = named(output)
    base, own = _DEMO if model == "demo" else (model, None)
    # A local path names nobody's model on the hub.
    base_model = base if HUB_NAME.fullmatch(base) and not Path(base).exists() else None
    kind = "text2text-generation" if _reads_with_encoder(output) else "text-generation"
    found = results(output.scores, kind)
    data = ModelCardData(
        # The hub wants a name where there are results, and takes none where there are not.
        model_name=f"{Path(base).name}, made smaller" if found else None,
        eval_results=found or None,
        base_model=base_model,
        library_name="transformers" if _is_stock(output) else "spectrim",
        license=licence or own,
        pipeline_tag=None if _reads_with_encoder(output) else "text-generation",
        tags=["spectrim", "model-compression", "low-rank-factorization"],
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{_body(output, base, name)}")


def _body(output: Output, base: str, name: str) -> str:
    auto = "AutoModelForSeq2SeqLM" if _reads_with_encoder(output) else "AutoModelForCausalLM"
    return _BODY.format(
        title=_escape(f"{Path(base).name}, made smaller"),
        first=_STOCK if _is_stock(output) else _OURS,
        auto=auto,
        name=name,
        made=_made(output, base),
        scores=_scores(output.scores),
        tasks=_tasks(output.scores),
        known=_list("Against everything known", _known(output.scores)),
        missing=_list("Not measured", tasks.unmeasured(output.scores)),
        warnings=_list("What to know", output.scores.get("warnings", [])),
        recipe=_fenced("Recipe", output.recipe, "yaml"),
        versions=_versions(output.scores.get("settings", {})),
    )


def _made(output: Output, base: str) -> str:
    plan = output.plan
    if not plan:
        return f"Made from {_escape(base)} with spectrim.\n"
    found = " ".join(map(_escape, notes.sentences(plan)))
    if "budget" not in plan:  # nothing was factored
        return f"Made from {_escape(base)} with spectrim. {found}\n"
    maps = [one for one in plan.get("decisions", []) if one.get("block", 0) >= 0]
    forms = ["trellis" if one.get("trellis") else one["format"] for one in maps]
    stored = [form for form in forms if form != "dense"]
    kinds = ", ".join(f"`{kind}`" for kind in sorted(set(stored)))
    return (
        f"Made from {_escape(base)} with spectrim: {_kept(output)}, "
        f"method `{plan.get('method')}`, allocator "
        f"`{plan.get('allocator')}`, {len(stored)} of {len(maps)} linear maps "
        f"stored as {kinds or 'anything else'}. {found} "
        "`plan.json` says which map is stored how.\n"
    ).replace("  ", " ")


def _kept(output: Output) -> str:
    """Return what part is really kept, which may be less than the budget allowed."""
    budget = output.plan["budget"]
    asked, of = budget.get("keep", 1), _escape(str(budget.get("of")))
    part = None
    if of == "linear" and budget.get("size"):  # the size is the part asked for, in numbers
        stored = sum(one["stored"] for one in output.plan.get("decisions", []))
        part = stored * asked / budget["size"]
    if part is None or f"{part:.0%}" == f"{asked:.0%}":
        return f"{asked:.0%} of {of} kept"
    return f"{part:.0%} of {of} kept where {asked:.0%} were allowed"


def _scores(scores: dict[str, Any]) -> str:
    if not scores:
        return ""
    settings = scores.get("settings", {})
    heads = ["", "", *map(_escape, table.columns(scores)), "change"]
    rows = [" | ".join(heads), " | ".join(["---", ":-:"] + ["--:"] * (len(heads) - 2))]
    rows += [
        " | ".join([_escape(line.name.strip()), line.arrow, *line.cells, line.change])
        for line in table.lines(scores)
    ]
    lines = "\n".join(f"| {row} |" for row in rows)
    on = f"{_escape(str(settings.get('text')))}, {settings.get('tokens')} tokens, window "
    on += f"{settings.get('window')}, stride {settings.get('stride')}"
    return f"\n## Scores\n\nOn {on}; ± is half a 95 % interval.\n\n{lines}\n"


def _tasks(scores: dict[str, Any]) -> str:
    lines, names = tasks.lines(scores), tasks.columns(scores)
    if not lines:
        return ""
    heads = ["", "", "", *map(_escape, names), "change", "n"]
    rows = [" | ".join(heads), " | ".join(["---", "---", ":-:"] + ["--:"] * (len(heads) - 3))]
    rows += [
        " | ".join(
            [_escape(line.task), _escape(line.name), line.arrow, *line.cells, line.change]
            + [line.count]
        )
        for line in lines
    ]
    return "\n## Tasks\n\n{}\n".format("\n".join(f"| {row} |" for row in rows))


def _known(scores: dict[str, Any]) -> list[str]:
    """Return what beats the smaller model, and what must be known beside it."""
    found, on_grid = points.points(scores), points.on_grid(scores)
    said = points.verdicts(found)
    remarks = [(one.label, points.remark(one, on_grid)) for one in found if one.style == "baseline"]
    return said + [f"{label}: {remark}" for label, remark in remarks if remark]


def _list(title: str, items: list[str]) -> str:
    return "\n## {}\n\n{}\n".format(title, "\n".join(f"- {_escape(one)}" for one in items)) * bool(
        items
    )


def _fenced(title: str, text: str, language: str) -> str:
    runs = [len(run) for run in re.findall(r"`+", text)]
    fence = "`" * max(3, 1 + max(runs, default=0))
    return f"\n## {title}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n" * bool(text)


def _versions(settings: dict[str, Any]) -> str:
    versions = settings.get("versions", {})
    said = ", ".join(f"{_escape(name)} {_escape(str(one))}" for name, one in versions.items())
    measured = f"Measured {settings['date'][:10]} with {said}.\n" if said else ""
    return f"\n{measured}" if measured else ""


def _is_stock(output: Output) -> bool:
    """Return whether a config that was read asks for no plug-in of ours."""
    return bool(output.config) and "quantization_config" not in output.config


def _reads_with_encoder(output: Output) -> bool:
    return bool(output.config.get("is_encoder_decoder"))


def _escape(text: str) -> str:
    """Return the text with what Markdown or HTML would take as markup made harmless."""
    flat = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", flat)
