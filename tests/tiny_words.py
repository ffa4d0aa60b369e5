"""Tiny tokenizers as the families have them, trained on a few lines in two scripts."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as steps
from tokenizers.trainers import BpeTrainer, UnigramTrainer

ENGLISH = (
    "The old lighthouse keeper wrote 1234 letters, and nobody answered them.\n"
    "She wouldn't wait; the waiting, the wanting, the wandering went on  and on.\n"
    "def mean(values):\n    return sum(values) / len(values)  # naïve café “quotes”\n"
)
RUSSIAN = "Старый смотритель маяка писал письма, и никто на них не отвечал. Он ждал и ждал.\n"
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{one:02X}>" for one in range(256)]
KINDS = ("gpt2", "llama3", "llama", "gemma", "unigram")


def tiny_words(kind: str, size: int = 480) -> Tokenizer:
    """Return a trained tokenizer: of bytes (GPT-2, Llama 3), SentencePiece's (Llama 2, Gemma, T5).

    size: of its vocabulary, at most. Each puts <s> before a text.
    """
    made = _bytewise(size) if kind in ("gpt2", "llama3") else _of_pieces(kind, size)
    if kind == "llama3":
        made.model.ignore_merges = True
        digits = steps.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated")
        made.pre_tokenizer = steps.Sequence([digits, steps.ByteLevel(False, use_regex=False)])
    first = made.token_to_id("<s>")
    made.post_processor = processors.Sequence(
        [processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", first)])]
    )
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    return made


def words_folder(folder: Path, kind: str) -> Tokenizer:
    """Write a tiny tokenizer into a model folder, and return it."""
    from transformers import PreTrainedTokenizerFast

    made = tiny_words(kind)
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        chat_template="{% for one in messages %}<s>{{ one.role }}: {{ one.content }}\n{% endfor %}",
    ).save_pretrained(folder)  # fmt: skip
    return made


def _bytewise(size: int) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = steps.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=steps.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([ENGLISH, RUSSIAN], trainer)
    return made


def _of_pieces(kind: str, size: int) -> Tokenizer:
    if kind == "unigram":
        made = Tokenizer(models.Unigram())
        trainer = UnigramTrainer(
            vocab_size=size, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
        made.pre_tokenizer = steps.Metaspace()
        made.decoder = decoders.Metaspace()
        made.train_from_iterator([ENGLISH, RUSSIAN], trainer)
        return made
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), *spaces] if kind == "llama" else spaces
    )
    trainer = BpeTrainer(
        vocab_size=size + 300, special_tokens=[*SPECIAL, *BYTES], show_progress=False
    )
    made.train_from_iterator([ENGLISH, RUSSIAN], trainer)
    said = json.loads(made.to_str())
    said["added_tokens"] = said["added_tokens"][: len(SPECIAL)]  # those of bytes are pieces
    made = Tokenizer.from_str(json.dumps(said))
    ends = [decoders.Strip(" ", 1, 0)] if kind == "llama" else []
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    return made
