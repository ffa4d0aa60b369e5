"""Which tokens of a vocabulary are used: by texts, by scripts, by the model's own chats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import regex
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from spectrim.errors import SpectrimError

_TURNS = [
    [{"role": "system", "content": "a"}, {"role": "user", "content": "a"},
     {"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}],
]  # fmt: skip
_NO_LETTER = "\N{REPLACEMENT CHARACTER}"  # stands for bytes that are a part of one


def of_texts(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that these documents become."""
    return {
        token
        for document in documents
        for token in tokenizer(document, add_special_tokens=False, verbose=False).input_ids
    }


def of_scripts(names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that texts in these scripts may become.

    Those without letters (digits, marks, parts of letters) are used by all.

    Args:
        names: of Unicode's scripts, such as "Latin", "Cyrillic" or "Han".
        tokenizer: says what the text of each token is.

    Raises:
        SpectrimError: there is no such script.
    """
    allowed = "".join(rf"\p{{Script={name}}}" for name in names)
    try:
        whole = regex.compile(rf"[{allowed}\p{{Common}}\p{{Inherited}}{_NO_LETTER}]*")
    except regex.error as error:
        raise SpectrimError(
            f"there is no script among {', '.join(names)} that Unicode lacks ({error}); write "
            "names such as Latin, Cyrillic or Han"
        ) from error
    every = sorted(tokenizer.get_vocab().values())
    said = tokenizer.batch_decode([[one] for one in every], clean_up_tokenization_spaces=False)
    return {one for one, text in zip(every, said, strict=True) if whole.fullmatch(text)}


def of_chats(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that the chat template puts around what is said; none where it has none."""
    if not tokenizer.chat_template:
        return set()
    for turns in _TURNS:
        try:
            said = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError):  # some know no system, some refuse other things
            continue
        return of_texts([str(said)], tokenizer)
    return set()
