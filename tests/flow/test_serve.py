"""`spectrim serve` as OpenAI's own client meets it: a real server, a tiny model."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from spectrim.serve import Limits
from tiny_server import served_folder, serving

PROMPT = "w5 w6 w7"
END = 2  # the token that ends a text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return served_folder(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def place(folder):
    with serving(folder, Limits(slots=5, queue=64)) as found:
        yield found


@pytest.fixture(scope="module")
def client(place):
    with place.client() as found:
        yield found


def words(tokens):
    return " ".join("<s>" if token == 1 else f"w{token}" for token in tokens)


def greedy(model, prompt, count):
    """Return what transformers' own generation answers."""
    ids = torch.tensor([[int(word[1:]) for word in prompt.split()]])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
    )
    return words(token for token in made[0, ids.shape[1] :].tolist() if token != END)


def test_a_completion_is_what_transformers_generates(client, model):
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0)
    assert found.choices[0].text == greedy(model, PROMPT, 12)
    assert found.choices[0].finish_reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 12)


def test_a_chat_is_put_by_the_models_template(client, model):
    parts = [{"type": "text", "text": "w5"}, {"type": "text", "text": " w6"}]
    found = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}],
        max_completion_tokens=6, temperature=0,
    )  # fmt: skip
    assert found.choices[0].message.content == greedy(model, "w5 w6 w9 w10", 6)
    assert found.usage.prompt_tokens == 4


def test_sixteen_streams_at_once_are_those_that_come_alone(place, model):
    """More clients than slots; prompts of very different lengths join and leave the batch."""
    prompts = [words(range(3 + one, 5 + one + 7 * (one % 4))) for one in range(16)]

    def stream(prompt):
        with place.client() as own:
            chunks = list(
                own.completions.create(
                    model="tiny", prompt=prompt, max_tokens=10 + len(prompt) // 9, temperature=0,
                    stream=True, stream_options={"include_usage": True},
                )
            )  # fmt: skip
        text = "".join(chunk.choices[0].text for chunk in chunks[:-1])
        ended = chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage.completion_tokens == len(text.split()) + ended
        return text

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(stream, prompts))
    alone = [greedy(model, prompt, 10 + len(prompt) // 9) for prompt in prompts]
    assert found == alone


def test_a_long_prompt_is_read_in_pieces(client, model):
    prompt = words(3 + one % 100 for one in range(600))
    found = client.completions.create(model="tiny", prompt=prompt, max_tokens=5, temperature=0)
    assert found.choices[0].text == greedy(model, prompt, 5)


def test_same_seed_same_answer(client):
    def sampled(seed):
        found = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "w5"}], seed=seed,
            max_tokens=12, top_p=0.9,
        )  # fmt: skip
        return found.choices[0].message.content

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_an_answer_ends_before_a_stop_sequence(client):
    whole = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0)
    text = whole.choices[0].text
    stop = text[9:16]
    chunks = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=12, temperature=0, stop=["zz", stop], stream=True
    )
    found = list(chunks)
    assert "".join(one.choices[0].text for one in found) == text[: text.index(stop)]
    assert found[-1].choices[0].finish_reason == "stop"


def test_logprobs_are_those_of_the_model(client, model):
    found = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "w5"}], temperature=0, max_tokens=2,
        logprobs=True, top_logprobs=3,
    )  # fmt: skip
    ids = torch.tensor([[5, 9, 10]])
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    likeliest = logits.log_softmax(-1).topk(3)
    first = found.choices[0].logprobs.content[0]
    assert [one.token for one in first.top_logprobs] == [f"w{i}" for i in likeliest.indices]
    told = [one.logprob for one in first.top_logprobs]
    assert told == pytest.approx(likeliest.values.tolist(), abs=1e-4)
    assert first.logprob == told[0]
    assert bytes(first.bytes).decode() == first.token


def test_embeddings_are_means_of_hidden_states(client, model):
    found = client.embeddings.create(model="tiny", input=["w5 w6", "w7"])
    with torch.no_grad():
        mean = model.model(torch.tensor([[5, 6]])).last_hidden_state[0].mean(0)
    expected = (mean / mean.norm()).numpy()
    np.testing.assert_allclose(found.data[0].embedding, expected, atol=1e-5)
    plain = client.embeddings.create(model="tiny", input="w7", encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, found.data[1].embedding, atol=1e-6)
    assert found.usage.prompt_tokens == 3
    long = list(range(3, 103)) * 6  # which is read in pieces
    found = client.embeddings.create(model="tiny", input=long, encoding_format="float")
    with torch.no_grad():
        mean = model.model(torch.tensor([long])).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(found.data[0].embedding, mean / mean.norm(), atol=1e-5)


def test_the_model_is_listed(client, place):
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").max_model_len == 4096
    with pytest.raises(openai.NotFoundError, match="'other' does not exist; this server has"):
        client.models.retrieve("other")
    assert httpx.get(f"{place.url}/health").json() == {"status": "ok", "slots": 5}
    assert httpx.head(f"{place.url}/health").status_code == 200


def test_a_client_that_leaves_frees_its_slot(client, place):
    before = place.metric("spectrim_cancelled_total")
    stream = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=4000, temperature=0, stream=True
    )
    next(iter(stream))
    assert place.metric("spectrim_active") == 1
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).completions.create(
            model="tiny", prompt=PROMPT, max_tokens=4000, temperature=0
        )
    deadline = time.monotonic() + 1
    while place.metric("spectrim_active") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert place.metric("spectrim_active") == 0
    assert place.metric("spectrim_cancelled_total") == before + 2


def test_texts_of_a_client_that_has_left_are_not_embedded(place, monkeypatch):
    made = []

    def slow(tokens):
        made.append(tokens)
        time.sleep(0.02)
        yield np.ones(4, dtype=np.float32)

    monkeypatch.setattr(place.served.batch, "embed", slow)
    body = {"model": "tiny", "input": ["w5"] * 100}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{place.url}/v1/embeddings", json=body, timeout=0.3)
    time.sleep(0.2)
    so_far = len(made)
    time.sleep(0.2)
    assert 0 < len(made) == so_far < 100


def test_those_beyond_the_queue_are_told_to_come_again(folder):
    with serving(folder, Limits(slots=1, queue=1), key="secret") as place:
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            place.client("wrong").models.list()
        asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 4000, "temperature": 0}
        with place.client("secret") as client:
            streams = [client.completions.create(**asked, stream=True) for _ in range(2)]
            next(iter(streams[0]))
            with pytest.raises(openai.RateLimitError) as found:
                client.completions.create(**asked)
            assert found.value.code == "queue_full"
            assert found.value.response.headers["retry-after"] == "1"
            for stream in streams:
                stream.close()
