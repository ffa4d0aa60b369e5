"""Checked options: the base of what a recipe says, its errors in one line, and the stages' options.

This is below the stages, which therefore can name the options that they take, and loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from spectrim.errors import SpectrimError, did_you_mean, unknown
from spectrim.registry import Registry

_METHODS = Registry("method", "spectrim.methods")
_ALLOCATORS = Registry("allocator", "spectrim.allocators")
_FORMATS = Registry("format", "spectrim.formats")


class Part(BaseModel):
    """A piece of a recipe: fixed once made, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        known = list(cls.model_fields)
        for key in data if isinstance(data, Mapping) else ():
            if key not in known:
                hint = did_you_mean(str(key), known) or ";"
                message = f"{hint} (keys: {', '.join(known)})"
                raise PydanticCustomError("unknown_key", "{m}", {"key": str(key), "m": message})
        return data


PartT = TypeVar("PartT", bound=BaseModel)


def validate(model: type[PartT], data: object, where: str) -> PartT:
    """Return the data as a checked model; SpectrimError with one line on the first fault.

    where: what the data is, for the message ("the recipe", "stage factorize").
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise SpectrimError(_one_line(error.errors()[0], where)) from error


def _one_line(fault: ErrorDetails, where: str) -> str:
    path = ".".join(str(step) for step in fault["loc"])
    place = f"{path} of {where}" if path else where
    if fault["type"] == "unknown_key":
        return f"unknown key '{fault['ctx']['key']}' in {place}{fault['msg']}"
    if fault["type"] == "missing":
        return f"{where} lacks '{path}'; add it"
    expected = fault["msg"].replace("Input should be", "it should be", 1)
    expected = re.sub(r"a valid dictionary or instance of \w+", "'key: value' lines", expected)
    return f"{place} cannot be {_brief(fault['input'])}; {expected}"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise SpectrimError(
            f"'{text}' is no regular expression ({error}); write one, such as 'down' or "
            r"'block 0$'"
        ) from error
    return text


def _switch(value: object) -> object:
    """Undo YAML, to which a bare `on` is true and a bare `off` false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _joined(value: object) -> object:
    """Write a list of methods as one text, the form in which it is kept."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _methods(text: str) -> str:
    names = [_METHODS.check(name.strip()) for name in text.split(",")]
    return ",".join(dict.fromkeys(names))


def _any_product(name: str) -> str:
    """Check a format that is to be chosen: one that holds any product, not one method's own."""
    of_methods: set[str] = set()
    for method in _METHODS.names():
        form = _METHODS.constant(method, "FORMAT") or ()
        of_methods |= set(form.values()) if isinstance(form, dict) else {form} if form else set()
    stages = {each: _FORMATS.constant(each, "STAGE") for each in _FORMATS.names()}
    of_stages = {each: stage for each, stage in stages.items() if stage}
    free = [each for each in stages if each not in of_methods and each not in of_stages]
    if name in of_stages:
        raise SpectrimError(
            f"format '{name}' is what the stage {of_stages[name]} leaves; add that stage, and "
            f"choose one of {', '.join(free)} here"
        )
    if name in of_methods:
        raise SpectrimError(
            f"format '{name}' comes with its own method; choose that method, or one of "
            f"{', '.join(free)}"
        )
    if name not in free:
        raise unknown("format", name, free)
    return name


def parse_tokens(text: str) -> tuple[int, int]:
    """Return (sequences, tokens in each) of "48x1024".

    SpectrimError where it is not of that form, has no sequence, or sequences of under 2 tokens.
    """
    found = re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", text, re.ASCII)
    sequences, length = (int(found[1]), int(found[2])) if found else (0, 0)
    if sequences < 1 or length < 2:
        raise SpectrimError(
            f"'{text}' is no amount of tokens; write sequences x tokens in each, such as 48x1024"
        )
    return sequences, length


def _tokens(text: str) -> str:
    parse_tokens(text)
    return text


Amount = Annotated[str, AfterValidator(_tokens)]
Regex = Annotated[str, AfterValidator(_regex)]
Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]


class Factorize(Part):
    """The stage that replaces linear maps by factors.

    method: how maps are decomposed; with several, each site takes what is best for it.
    allocator: how the budget is shared among the maps.
    format: what is stored in place of the matrix.
    centre: centre the inputs, and let a bias of every cut map make up for their mean.
    refine: solve the factors again on what the smaller model really delivers; "auto" keeps that
        where it lowers the loss on the search split.
    damp_input, damp_gradient: part of their mean diagonal added to the moments of the inputs and
        of the gradients before they are inverted, from 0.
    rank_multiple: chosen ranks are multiples of this, from 1.
    bits: also offer every cut, and the whole matrix, with its numbers in so many bits, of 2, 3, 4
        and 8, and with 1 the whole matrix as two factors of signs; a stage `quantize` must follow,
        and carries out what was chosen.
    trellis: also offer, beside bits, every whole matrix with its columns coded as paths through a
        trellis, at half a bit to five bits a number: less error at equal bytes, slower products.
    ends: bits that embedding and head may have, of 2, 3, 4 and 8; they are bought along with the
        maps, from one budget of the bytes of the whole model.
    cut: also offer smaller ranks; without, bits alone are chosen.
    group: of how many neighbours along the input a step of these is, 32, 64 or 128; 0: of a row.
    rounding_losses: how it is known what bits cost: "measured" rounds every map in all of them for
        real; "estimated" rounds some rows of each and takes the ranges of the others, in a small
        part of the time.
    split_fused: take a map that computes queries, keys and values at once as three maps.
    protect: regular expressions; a site stays dense where one is found in its name, its role, or
        "block N".
    """

    method: Annotated[str, BeforeValidator(_joined), AfterValidator(_methods)] = "loss_aware_svd"
    allocator: Annotated[str, AfterValidator(_ALLOCATORS.check)] = "global"
    format: Annotated[str, AfterValidator(_any_product)] = "pivoted"
    centre: bool = False
    refine: Switch = "auto"
    damp_input: float = Field(default=1e-4, ge=0)
    damp_gradient: float = Field(default=1e-2, ge=0)
    rank_multiple: int = Field(default=8, ge=1)
    bits: tuple[Literal[1, 2, 3, 4, 8], ...] = ()
    trellis: bool = False
    ends: tuple[Literal[2, 3, 4, 8], ...] = ()
    cut: bool = True
    group: Literal[0, 32, 64, 128] = 64
    rounding_losses: Literal["measured", "estimated"] = "measured"
    split_fused: bool = False
    protect: tuple[Regex, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of all methods."""
        return tuple(self.method.split(","))

    @property
    def code_bits(self) -> tuple[int, ...]:
        """The bits that codes may have, which the signs of factors are not."""
        return tuple(bits for bits in self.bits if bits > 1)
