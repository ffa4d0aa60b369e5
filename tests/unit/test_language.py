"""What stands before a text, as a model's own tokenizer has it."""

from __future__ import annotations

import pytest
from gguf import GGUFWriter
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from spectrim.errors import SpectrimError
from spectrim.serve.language import of_path
from tiny_exports import byte_pairs


@pytest.mark.parametrize(
    ("begin", "end", "template", "found"),
    [
        ("<s>", "</s>", "<s> $A", (1,)),
        ("<s>", "</s>", "<s> $A </s>", (1,)),
        ("</s>", "</s>", "</s> $A", (2,)),  # one token for both, as OPT has it
        ("<s>", "</s>", "$A </s>", ()),
        ("<s>", "</s>", "$A", ()),
    ],
)
def test_the_beginning_of_a_text_is_the_tokenizers(tmp_path, begin, end, template, found):
    words = byte_pairs()
    words.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    special = {"bos_token": begin, "eos_token": end}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(tmp_path)
    told = of_path(tmp_path)
    assert told.begin == found
    assert told.ends == {2}


def test_a_gguf_without_a_vocabulary_is_refused(tmp_path):
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SpectrimError, match="no vocabulary that can be read"):
        of_path(tmp_path / "a.gguf")
