"""Requests that cannot be answered: each one gets an error in OpenAI's shape, and says why."""

from __future__ import annotations

import itertools
import json
import socket

import httpx
import pytest
from typer.testing import CliRunner

from spectrim.cli.main import app
from spectrim.errors import SpectrimError
from spectrim.serve import Limits
from spectrim.serve.server import bound
from tiny_server import served_folder, serving

TEXT = {"model": "tiny", "prompt": "w5", "max_tokens": 2}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "w5"}], "max_tokens": 2}
EMBED = {"model": "tiny", "input": "w5"}
BODIES = {"/v1/completions": TEXT, "/v1/chat/completions": CHAT, "/v1/embeddings": EMBED}
JSON = {"Content-Type": "application/json"}

# Field → values that no path takes.
WRONG = {
    "model": [None, 5, "", "other", ["tiny"], "\ud800"],
    "max_tokens": [0, -1, 1.5, "2", True, 10**6, 10**30, [2]],
    "temperature": [-0.1, 2.1, "1", float("nan"), float("inf"), True, {}],
    "top_p": [-1, 1.1, "0.5", float("nan"), []],
    "seed": [1.5, "1", 2**63, True],
    "stop": [5, "", [""], ["a"] * 5, [["a"]], "a" * 1001],
    "stream": ["yes", 1, 0.0],
    "stream_options": [True, {"include_usage": 1}, {"include_usage": True}, {"other": True}],
    "n": [0, 2, "1", True],
    "frequency_penalty": [0.5, "0"],
    "presence_penalty": [1],
    "logit_bias": [{"5": 100}],
    "top_k": [5],
}
ONLY = {
    "/v1/completions": {
        "prompt": [None, "", [], [[]], 5, {}, ["w5", "w6"], [[3], [4]], [-1], [112], [2**70],
                   [1.5], [True], ["w5", 3], "w5 " * 70, "w5 " * 10_000, "\ud800", [None]],
        "logprobs": [-1, 6, True, "2", 1.0],
        "best_of": [2], "echo": [True], "suffix": ["w6"],
    },
    "/v1/chat/completions": {
        "messages": [None, [], "w5", [5], [{}], [{"role": "user"}], [{"content": "w5"}],
                     [{"role": "king", "content": "w5"}], [{"role": "user", "content": 5}],
                     [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
                     [{"role": "tool", "content": "w5"}], [{"role": "assistant"}],
                     [{"role": "user", "content": None}],
                     [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
                     [{"role": "user", "content": "w5 " * 10_000}],
                     [{"role": "user", "content": "w5 " * 70}],
                     [{"role": "user", "content": "w5", "more": 1}]],
        "max_completion_tokens": [0, "2", 10**6], "logprobs": [1, "yes"],
        "top_logprobs": [-1, 3, 21, True], "tools": [[{"type": "function"}]],
        "response_format": [{"type": "json_object"}],
    },
    "/v1/embeddings": {
        "input": [None, "", [], [[]], 5, ["w5", 3], [112], ["w5"] * 257, [[5]] * 257, [""],
                  "w5 " * 70],
        "encoding_format": ["int8", 5], "dimensions": [8],
    },
}  # fmt: skip
RAW = [
    b"", b"{", b"null", b"[]", b"5", b'"text"', b"\xff\xfe", b"[" * 50_000, b'{"model": }',
    b'{"model": "tiny" "prompt": "w5"}', b"\x00" * 8, b'{"a": ' * 5000,
]  # fmt: skip


def malformed():
    """Yield method, path, headers, body and the field that is wrong, None where it is none."""
    for path, body in BODIES.items():
        shared = WRONG if path != "/v1/embeddings" else {"model": WRONG["model"]}
        for field, values in itertools.chain(shared.items(), ONLY[path].items()):
            for value in values:
                wrong = json.dumps(body | {field: value}).encode()
                yield "POST", path, JSON, wrong, field
        yield "POST", path, JSON, json.dumps({"model": "tiny"}).encode(), None
        yield "POST", path, {}, json.dumps(body).encode(), None  # no content type
        for raw in RAW:
            yield "POST", path, JSON, raw, None
        yield "POST", path, JSON, b" " * (5 * 2**20), None
        for method in ("GET", "PUT", "DELETE", "PATCH"):
            yield method, path, JSON, None, None
    for path in ("/", "/v1", "/v1/", "/v2/models", "/v1/models/x/y", "/v1/completions/"):
        yield "GET", path, {}, None, None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = served_folder(tmp_path_factory.mktemp("serve") / "tiny", context=64)
    with serving(folder, Limits(slots=2, queue=4)) as found:
        yield found


def test_every_malformed_request_is_refused_in_openais_shape(place):
    asked = list(malformed())
    assert len(asked) >= 200
    with httpx.Client(base_url=place.url) as client:
        for method, path, headers, body, field in asked:
            found = client.request(method, path, headers=headers, content=body)
            what = (method, path, body and body[:80], found.text)
            assert 400 <= found.status_code < 500, what
            error = found.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}, what
            assert error["message"] and "\n" not in error["message"], what
            named = str(error["param"]).partition(".")[0]
            both = {"max_tokens", "max_completion_tokens"}  # a context has one sum of the two
            assert field in (None, named) or {field, named} <= both, what
        for path, body in BODIES.items():
            assert client.post(path, json=body).status_code == 200
    assert place.metric("spectrim_active") == place.metric("spectrim_waiting") == 0


def test_an_unknown_key_is_named_whatever_it_holds(place):
    for key, named in (("foo-bar", "foo-bar"), ("x y" * 100, "x y" * 33 + "x")):
        raw = json.dumps(TEXT | {key: 1})
        found = httpx.post(f"{place.url}/v1/completions", headers=JSON, content=raw)
        error = found.json()["error"]
        assert (found.status_code, error["code"], error["param"]) == (
            400,
            "unknown_argument",
            named,
        )


def test_a_body_of_unknown_length_is_limited_too(place):
    def pieces():
        for _ in range(80):
            yield b" " * 2**16

    found = httpx.post(f"{place.url}/v1/completions", headers=JSON, content=pieces())
    assert found.status_code == 413
    assert found.json()["error"]["code"] == "request_too_large"


def test_a_model_that_fails_is_told_without_its_insides(place, monkeypatch):
    monkeypatch.setattr(place.served.batch, "step", lambda tokens: 1 / 0)
    with httpx.Client(base_url=place.url) as client:
        found = client.post("/v1/completions", json=TEXT)
        assert found.status_code == 500
        assert found.json()["error"]["type"] == "server_error"
        assert "division" not in found.text
        streamed = client.post("/v1/completions", json=TEXT | {"stream": True})
        last = streamed.text.strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        monkeypatch.undo()
        assert client.post("/v1/completions", json=TEXT).status_code == 200


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--port", "70000"], "--port 70000 is no port"),
        (["--slots", "0"], "--slots is to be 1 or more"),
        (["--context", "1"], "--context 1 is too short"),
        (["--context", "65"], "the model has 64 positions"),
        (["--api-key", " "], "--api-key is empty"),
        (["--host", "198.51.100.7", "--port", "0"], "cannot listen on 198.51.100.7"),
        (["--host", "a..b"], "cannot listen on a..b, port 0 (it is no name of a machine)"),
    ],
)
def test_a_server_that_cannot_be_started_says_why(tmp_path, options, says):
    folder = served_folder(tmp_path / "tiny", context=64)
    found = CliRunner().invoke(app, ["serve", str(folder), "--port", "0", *options])
    assert isinstance(found.exception, SpectrimError)
    assert says in str(found.exception)


def test_a_taken_port_is_refused(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SpectrimError, match="Address already in use"):
            bound("127.0.0.1", taken.getsockname()[1])
