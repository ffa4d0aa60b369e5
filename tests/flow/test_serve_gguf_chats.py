"""Chats and streams with a GGUF file behind the server: its own template, one answer at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from spectrim.exporters.gguf import gguf
from spectrim.serve import Limits
from tiny_exports import chatting
from tiny_server import serving

PROMPTS = ["the king", "an ounce", "in the"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chatting(tmp_path_factory.mktemp("gguf") / "tiny")


@pytest.fixture(scope="module")
def client(folder):
    file = folder.parent / "tiny.gguf"
    gguf(folder, file, None)
    with serving(file, Limits(slots=4, context=64)) as place, place.client() as found:
        yield found


def greedy(folder, text, count, special=True):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer(text, add_special_tokens=special, return_tensors="pt")
    ids = asked["input_ids"]
    made = AutoModelForCausalLM.from_pretrained(folder).generate(
        ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=count, do_sample=False
    )[0]
    return tokenizer.decode(made[ids.shape[1] :]).removesuffix("</s>")


def test_answers_are_those_of_the_folder(client, folder):
    def answer(prompt):
        chunks = client.completions.create(
            model="tiny.gguf", prompt=prompt, max_tokens=8, temperature=0, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(3) as pool:
        found = [text.strip() for text in pool.map(answer, PROMPTS)]
    assert found == [greedy(folder, prompt, 8).strip() for prompt in PROMPTS]


def test_the_files_own_template_puts_the_chat(client, folder):
    found = client.chat.completions.create(
        model="tiny.gguf", messages=[{"role": "user", "content": "the"}], max_tokens=6,
        temperature=0,
    )  # fmt: skip
    expected = greedy(folder, "<s>the and ", 6, special=False)
    assert found.choices[0].message.content.strip() == expected.strip()


def test_embeddings_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="gives no hidden states; serve its folder"):
        client.embeddings.create(model="tiny.gguf", input="the")
