"""An ONNX folder behind the server, as OpenAI's own client meets it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from transformers import AutoTokenizer

from spectrim.exporters.onnx import onnx
from spectrim.serve import Limits
from tiny_exports import chatting
from tiny_runs import load
from tiny_server import serving

PROMPTS = ["the king", "an ounce", "in the"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chatting(tmp_path_factory.mktemp("onnx") / "tiny", head_dim=16)


@pytest.fixture(scope="module")
def place(folder):
    made = folder.parent / "tiny-onnx"
    made.mkdir()
    onnx(folder, made, None)
    with serving(made, Limits(slots=4, queue=8, context=64)) as found:
        yield found


@pytest.fixture(scope="module")
def client(place):
    with place.client() as found:
        yield found


def greedy(folder, text, count):
    """Return what transformers' own generation answers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    made = load(folder).generate(
        ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=count, do_sample=False
    )[0]
    return tokenizer.decode(made[ids.shape[1] :]).removesuffix("</s>")


def test_answers_are_those_of_the_folder_one_after_the_other(client, folder, place):
    def answer(prompt):
        chunks = client.completions.create(
            model="tiny-onnx", prompt=prompt, max_tokens=8, temperature=0, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(answer, PROMPTS))
    assert found == [greedy(folder, prompt, 8) for prompt in PROMPTS]
    assert httpx.get(f"{place.url}/health").json() == {"status": "ok", "slots": 1}


def test_the_models_own_template_puts_the_chat(client, folder):
    said = {"role": "user", "content": "the"}
    first = client.chat.completions.create(
        model="tiny-onnx", messages=[said], max_tokens=6, temperature=0
    )
    assert first.choices[0].message.content == greedy(folder, "<s>the and ", 6)
    before = first.choices[0].message
    # An answer goes back as the client gives it, and one without text as if it had an empty one.
    again = client.chat.completions.create(
        model="tiny-onnx", max_tokens=6, temperature=0,
        messages=[said, before.model_dump(), before.model_copy(update={"content": None}), said],
    )  # fmt: skip
    expected = greedy(folder, f"<s>the and {before.content} and  and the and ", 6)
    assert again.choices[0].message.content == expected


def test_embeddings_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="gives no hidden states; serve its folder"):
        client.embeddings.create(model="tiny-onnx", input="the")
