"""What a model's own files say of text: tokens before it and at its end, and how a chat is put."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from jinja2 import TemplateError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from spectrim.errors import SpectrimError
from spectrim.model.gguf import metadata

Message = Mapping[str, str]

_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of text, of turn, of message


class ChatError(ValueError):
    """A chat that the model's template does not take; the message says why."""


@dataclass(frozen=True)
class Language:
    """How text is put to one model."""

    begin: tuple[int, ...]
    """Tokens before every text, such as the one that begins a document."""
    ends: frozenset[int]
    """Tokens that end an answer."""
    template: str | None
    """Of chats, in Jinja; None where the model knows no chats."""
    names: Mapping[str, str]
    """Texts of special tokens that the template names."""

    def chat(self, messages: Sequence[Message]) -> str:
        """Return a chat as the text that the model's answer follows.

        Raises:
            ChatError: there is no template, or the template refuses such a chat.
        """
        if self.template is None:
            raise ChatError("this model has no chat template; use /v1/completions")
        try:
            options: dict[str, Any] = dict(self.names)
            found: Any = render_jinja_template(
                conversations=[[dict(one) for one in messages]],
                chat_template=self.template,
                add_generation_prompt=True,
                **options,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ChatError(f"the model's chat template refuses this chat: {error}") from error
        return str(found[0][0])


def of_path(path: Path) -> Language:
    """Return what a .gguf file, or a folder with a tokenizer, says of its text.

    Raises:
        SpectrimError: there is no tokenizer that can be read.
    """
    return _of_gguf(path) if path.suffix == ".gguf" else _of_folder(path)


def _of_folder(folder: Path) -> Language:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # every kind of tokenizer has its own way to fail
        raise SpectrimError(
            f"{folder} has no tokenizer that can be read; export it anew"
        ) from error
    ends = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        ends |= _ends_of_generation(folder)
    known = frozenset(int(end) for end in ends if end is not None)
    # Some tokenizers begin a text with the same token that ends it.
    bare = tokenizer("a", add_special_tokens=False).input_ids
    told = tokenizer("a").input_ids
    begin = tuple(told[: told.index(bare[0])]) if bare else ()
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    names = {name: str(text) for name, text in tokenizer.special_tokens_map.items()}
    return Language(begin, known, template, names)


def _ends_of_generation(folder: Path) -> set[int]:
    """Return the tokens at which generation_config.json has answers end."""
    try:
        found = GenerationConfig.from_pretrained(folder).eos_token_id
        return {
            int(end) for end in (found if isinstance(found, list) else [found]) if end is not None
        }
    except Exception as error:  # transformers checks its values in many ways
        raise SpectrimError(
            f"{folder / 'generation_config.json'} is damaged; export it anew"
        ) from error


def _of_gguf(file: Path) -> Language:
    said = metadata(file)
    try:
        return _of_metadata(file, said)
    except (KeyError, ValueError, IndexError, TypeError) as error:  # it lacks one, or is cut off
        raise SpectrimError(f"{file} has no vocabulary that can be read; fetch it again") from error


def _of_metadata(file: Path, said: Mapping[str, Any]) -> Language:
    ids = {end: said.get(f"tokenizer.ggml.{end}") for end in ("bos_token_id", *_ENDS)}
    texts = GGUFReader(file).fields["tokenizer.ggml.tokens"]
    names = {
        name.removesuffix("_id"): str(texts.contents(index))
        for name, index in ids.items()
        if index is not None
    }
    # Left out, it is so for vocabularies of SentencePiece, which llama.cpp calls "llama".
    begins = said.get("tokenizer.ggml.add_bos_token", said["tokenizer.ggml.model"] == "llama")
    begin = ids["bos_token_id"]
    return Language(
        begin=(int(begin),) if begins and begin is not None else (),
        ends=frozenset(int(ids[end] or 0) for end in _ENDS if ids[end] is not None),
        template=said.get("tokenizer.chat_template"),
        names=names,
    )


def chat_text(content: Any) -> str:
    """Return the text of a message's content: a text, or a list of parts that are texts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or ())
