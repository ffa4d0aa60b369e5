"""A Llama of random weights as a model folder, as wide as one of 1.1 B, with fewer blocks.

    python benchmarks/random_llama.py -o wide/ [--blocks 4]

For what depends on widths alone: rows are multiples of 256 numbers, which all of llama.cpp's types
hold. Blocks and vocabulary are fewer by the same factor than those of benchmarks/decode.py's model,
so that the tables take the same part of the bytes. Nobody has trained it: its inputs are nearly
alike in all directions, which leaves little to gain.
"""

from __future__ import annotations

from pathlib import Path

import torch
from decode import BILLION
from measuring import arguments
from one_line_errors import told
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from spectrim.model.weights import quiet
from spectrim.outputs.folder import output_folder

TEXT = "lm/wikitext2_tokens/valid.txt"


def main() -> None:
    """Write the folder."""
    parser = arguments(__doc__)
    parser.add_argument("--blocks", type=int, default=4, help="of 16")
    asked = parser.parse_args()
    write_random(asked.output, asked.data / TEXT, asked.blocks)


def write_random(folder: Path, text: Path, blocks: int) -> None:
    """Write a model in bf16 and a tokenizer of as many words as its vocabulary has."""
    words = BILLION["vocab_size"] * blocks // BILLION["num_hidden_layers"]
    fewer = {"num_hidden_layers": blocks, "vocab_size": words}
    config = LlamaConfig(
        **{**BILLION, **fewer}, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    with output_folder(folder, "random") as partial:
        with quiet():
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(partial)
        special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        PreTrainedTokenizerFast(
            tokenizer_object=_tokenizer(text, words), **special
        ).save_pretrained(partial)


def _tokenizer(text: Path, words: int) -> Tokenizer:
    """Return byte pairs of a text, so many of them."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train([str(text)], trainer)
    return made


if __name__ == "__main__":
    told(main)
