"""Whether a model can read a text: no longer than its positions, no token beyond its embedding."""

from __future__ import annotations

from spectrim.errors import SpectrimError
from spectrim.model import sources
from spectrim.model.architectures import architecture_of
from spectrim.model.sources import Source
from spectrim.text.tokens import Tokens


def refuse_length(source: Source, length: int) -> None:
    """Raise SpectrimError where sequences are longer than a model's table of positions."""
    config = sources.config(source)
    longest = getattr(config, "max_position_embeddings", length)
    if architecture_of(config).learned_positions and length > longest:
        raise SpectrimError(
            f"{source.name} has {longest} positions; ask for sequences of at most {longest} tokens "
            "with --tokens"
        )


def refuse_tokens(source: Source, tokens: Tokens, name: str) -> None:
    """Raise SpectrimError where a text has a token that the model's embedding has no row for."""
    rows, highest = sources.config(source).vocab_size, int(tokens.ids.max())
    if highest >= rows:
        word = sources.tokenizer(source).convert_ids_to_tokens(highest)
        raise SpectrimError(
            f"{name} has '{word}', token {highest} of the tokenizer, but the embedding of "
            f"{source.name} only {rows} rows; put the model's tokenizer right"
        )
