"""Amounts of tokens, as recipes and stages write them."""

from __future__ import annotations

import pytest

from spectrim.errors import SpectrimError
from spectrim.recipe.options import parse_tokens
from spectrim.recipe.recipe import Calibration


def message(call, *arguments) -> str:
    with pytest.raises(SpectrimError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_tokens_are_sequences_times_length():
    assert parse_tokens("48x1024") == (48, 1024)
    assert parse_tokens(" 1 X 2 ") == (1, 2)


@pytest.mark.parametrize("text", ["48", "0x1024", "48x1", "48x1024x2", "-1x8", "many"])
def test_tokens_that_cannot_be_say_how_to_write_them(text):
    expected = f"'{text}' is no amount of tokens; write sequences x tokens in each, such as 48x1024"
    assert message(parse_tokens, text) == expected
    assert message(Calibration.parse, "a.txt", text) == expected
