"""The file that says what to do: every name and option is checked before anything is loaded.

A recipe is YAML; the folder `recipes/` holds some that are ready to run:

    model: demo
    keep: 80% of linear
    calibration: {text: default, tokens: 48x1024}
    stages:
      - factorize: {method: loss_aware_svd, allocator: global, format: pivoted}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_serializer, model_validator

from spectrim.errors import SpectrimError, did_you_mean
from spectrim.recipe.options import Amount, Factorize, Part, parse_tokens, validate
from spectrim.recipe.order import BITS_SAVE_BYTES, ENDS_ARE_OUTSIDE, refuse_order
from spectrim.registry import Registry

_STAGES = Registry("stage", "spectrim.stages")
# Every stage brings its own checked options, the class `Options` beside it.
_OPTIONS = Registry("stage", "spectrim.stages", attribute=lambda _: "Options")

_PART = r"\s*(-?\d+(?:\.\d+)?)\s*(%?)(?:\s*of\s+(\w+(?: \w+)?))?\s*"
_SUCH = {"size": "'25%' or '25% of linear bytes', or bytes, such as '600MB' or '1.5GiB'"}


class Keep(Part):
    """How much stays.

    fraction: the part that stays, more than 0 and at most 1.
    of: "linear", the numbers of the linear maps inside the blocks; "linear bytes", the bytes that
        they take; "bytes", the whole model.
    """

    fraction: float = Field(gt=0, le=1)
    of: Literal["linear", "linear bytes", "bytes"] = "bytes"

    @classmethod
    def parse(cls, text: str, name: str = "keep") -> Keep:
        """Return the amount that "80% of linear", "60% of bytes" or "60%" (of bytes) means.

        name: what the user calls it.

        SpectrimError where it is no percentage, not above 0, over 100, or of something else.
        """
        return cls(**_keep(text, name))

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: object) -> object:
        written = isinstance(data, (str, int, float)) and not isinstance(data, bool)
        return _keep(str(data)) if written else data

    @model_serializer
    def _to_text(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """Return the text that `parse` reads back as the same amount."""
        percent = f"{self.fraction * 100:.10f}".rstrip("0").rstrip(".")
        return f"{percent}% of {self.of}"


def _keep(text: str, name: str = "keep") -> dict[str, Any]:
    found = re.fullmatch(_PART, text, re.ASCII)
    percent, of = (float(found[1]), found[3] or "bytes") if found else (0.0, "")
    if not found or (percent and not found[2]):
        raise SpectrimError(
            f"cannot read {name} '{text}'; write the part that stays with its unit, such as "
            + _SUCH.get(name, "'80% of linear' or '60% of bytes'")
        )
    if not 0 < percent <= 100:
        raise SpectrimError(f"{name} '{text}' is out of range; keep more than 0% and at most 100%")
    if of not in (units := ["linear", "linear bytes", "bytes"]):
        hint = did_you_mean(of, units) or ";"
        raise SpectrimError(f"cannot keep a part of '{of}'{hint} ({', '.join(units)})")
    return {"fraction": percent / 100, "of": of}


class Calibration(Part):
    """What the model reads while its statistics are taken.

    text: "default" for the text that ships with Spectrim, "hub" for a mix of hub data sets,
        "sampled" for text from the model itself, a file, or the name of a hub data set.
    tokens: how many sequences of how many tokens, such as 48x1024.
    """

    text: str = "default"
    tokens: Amount = "48x1024"

    @classmethod
    def parse(cls, text: str = "default", tokens: str = "48x1024") -> Calibration:
        """Return the calibration on this text; SpectrimError where the tokens cannot be read."""
        return validate(cls, {"text": text, "tokens": tokens}, "calibration")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: object) -> object:
        return {"text": data} if isinstance(data, str) else data

    @property
    def sequences(self) -> int:
        """How many sequences."""
        return parse_tokens(self.tokens)[0]

    @property
    def length(self) -> int:
        """How many tokens each sequence has."""
        return parse_tokens(self.tokens)[1]


# What is known without importing the stage, so that the default recipe loads no torch.
_KNOWN: dict[str, type[Part]] = {"factorize": Factorize}


class Stage(Part):
    """One step: a plug-in's name and its options, in a file `name: {option: value}` or `name`."""

    name: str
    options: Any

    @model_validator(mode="before")
    @classmethod
    def _from_entry(cls, data: object) -> object:
        data = {data: {}} if isinstance(data, str) else data
        if not isinstance(data, Mapping) or isinstance(data.get("options"), Part):
            return data
        if len(data) != 1:
            raise SpectrimError(
                f"a stage has one name, not {len(data)} ({', '.join(map(str, data))}); "
                "write each as a list item of its own, '- factorize: {method: ...}'"
            )
        ((name, options),) = data.items()
        made = _KNOWN.get(_STAGES.check(name)) or _OPTIONS.get(name)
        return {"name": name, "options": validate(made, options or {}, f"stage {name}")}

    @model_serializer
    def _to_entry(self) -> dict[str, Any]:
        return {self.name: self.options.model_dump(mode="json")}


def _default_stages() -> list[Stage]:
    return [Stage(name="factorize", options=Factorize())]


class Recipe(Part):
    """Everything that decides the result: the same recipe on the same model gives the same bits.

    model: a hub name, a folder, a GGUF file, or "demo". keep: how much stays.
    calibration: what the model reads meanwhile. stages: what is done, in order.
    seed: for everything drawn at random. trust_remote_code: run code that comes with the model.
    """

    model: str
    keep: Keep = Keep(fraction=0.8, of="linear")
    calibration: Calibration = Calibration()
    stages: list[Stage] = Field(default_factory=_default_stages, min_length=1)
    seed: int = Field(default=0, ge=0, le=2**32 - 1)  # what numpy takes
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Recipe:
        refuse_order([(stage.name, stage.options) for stage in self.stages])
        if self.keep.of == "linear" and self.factorize is not None and self.factorize.bits:
            raise SpectrimError(BITS_SAVE_BYTES)
        if self.keep.of != "bytes" and self.factorize is not None and self.factorize.ends:
            raise SpectrimError(ENDS_ARE_OUTSIDE)
        return self

    @property
    def factorize(self) -> Factorize | None:
        """The options of the stage that factors maps; None where the recipe has no such stage."""
        return next((one.options for one in self.stages if one.name == "factorize"), None)

    def trimmed(self, text: str) -> Recipe:
        """Return the recipe with the stage in front that leaves out what this text never uses.

        SpectrimError where that cannot stand in front of the other stages.
        """
        stage = Stage.model_validate({"trim_vocabulary": {"text": text}})
        data = self.model_dump() | {"stages": [stage, *self.stages]}
        return validate(Recipe, data, "the recipe")

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """Return the recipe in a file; SpectrimError where it cannot be read or says nonsense."""
        return cls.build(path, {})

    @classmethod
    def build(cls, path: str | Path | None, changes: Mapping[str, object]) -> Recipe:
        """Return the recipe in a file (None: the default one) with some values changed.

        changes: value by key, "keep", "calibration.tokens" or "factorize.method"; None changes
            nothing.

        SpectrimError where the file or a change cannot be read, or there is no such stage.
        """
        data = {} if path is None else _read(Path(path))
        for key, value in changes.items():
            if value is not None:
                _change(data, key, value)
        return validate(cls, data, "the recipe")

    def to_yaml(self) -> str:
        """Return the recipe as text that `from_yaml` reads back as the same recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    """Return what the file says, proven to be a recipe, so that its faults carry its name."""
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise SpectrimError(f"cannot read recipe '{path}'; it is no file, and should be YAML")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(data, dict):
            raise SpectrimError(f"this is a {type(data).__name__}; a recipe is 'key: value' lines")
        # a budget may still come from the command line
        validate(Recipe, {"model": "", "keep": "100% of linear bytes", **data}, "the recipe")
    except FileNotFoundError as error:
        raise SpectrimError(f"there is no recipe file '{path}'; check the path") from error
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SpectrimError(f"cannot read recipe '{path}'; it should be YAML: {reason}") from error
    except SpectrimError as error:
        raise SpectrimError(f"{path}: {error}") from error
    return data


def _change(data: dict[str, Any], key: str, value: object) -> None:
    part, _, option = key.partition(".")
    if not option:
        data[part] = value
    elif part == "calibration":
        written = data.get(part, {})
        written = {"text": written} if isinstance(written, str) else written
        data[part] = {**written, option: value}
    else:
        _change_stage(data, part, {option: value})


def _change_stage(data: dict[str, Any], name: str, change: dict[str, object]) -> None:
    written = data.get("stages", ["factorize"])
    stages = [{stage: {}} if isinstance(stage, str) else stage for stage in written]
    if not any(name in stage for stage in stages):
        (option,) = change
        raise SpectrimError(f"the recipe has no stage {name}; leave out {option}, or add the stage")
    data["stages"] = [
        {name: {**(stage[name] or {}), **change}} if name in stage else stage for stage in stages
    ]
