"""A server that is told to stop: what is in the making ends, what is new is refused."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import httpx
import pytest

from spectrim.serve import Limits, server
from spectrim.serve.served import opened
from tiny_processes import start
from tiny_server import served_folder

ASKED = {"model": "tiny", "prompt": "w5 w6 w7", "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return served_folder(tmp_path_factory.mktemp("serve") / "tiny")


def stopped_by(folder, client):
    """Serve in this thread until a client, in another, has sent a signal; return what was said."""
    served, listening = opened(folder, Limits(slots=2), threads=1), server.bound("127.0.0.1", 0)
    url, said, faults = f"http://127.0.0.1:{listening.getsockname()[1]}", [], []
    step = served.batch.step
    served.batch.step = lambda tokens: (time.sleep(0.01), step(tokens))[1]

    def asks():
        try:
            with httpx.Client(base_url=url, timeout=60) as own:
                client(own)
        except BaseException as error:
            faults.append(error)
        finally:
            if faults or not said:
                os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=asks)
    server.serve(served, listening, None, thread.start, said.append)
    thread.join()
    if faults:
        raise faults[0]
    return said


def events(lines):
    return [line.removeprefix("data: ") for line in lines if line]


def test_an_answer_in_the_making_is_ended_and_a_new_one_refused(folder):
    def client(own):
        body = ASKED | {"max_tokens": 40, "stream": True}
        with own.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(os.getpid(), signal.SIGTERM)
            while (health := own.get("/health")).status_code == 200:
                pass
            assert health.status_code == 503
            refused = own.post("/v1/completions", json=ASKED)
            assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")
            assert refused.headers["retry-after"]
            rest = events(lines)
        assert rest[-1] == "[DONE]"
        assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"

    assert stopped_by(folder, client) == [
        "stopping; 1 still in the making, for 5 seconds at most",
        "stopped",
    ]


def test_what_takes_too_long_ends_with_an_error(folder, monkeypatch):
    monkeypatch.setattr(server, "_PATIENCE", 0.2)

    def client(own):
        body = ASKED | {"max_tokens": 4000}
        found = {}

        def whole():
            found["whole"] = own.post("/v1/completions", json=body)

        thread = threading.Thread(target=whole)
        thread.start()
        with own.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(os.getpid(), signal.SIGTERM)
            rest = events(lines)
        thread.join()
        assert "has stopped" in json.loads(rest[-1])["error"]["message"]
        assert found["whole"].status_code == 503

    assert stopped_by(folder, client)[-1] == "stopped"


def test_an_interrupted_server_says_that_it_has_stopped(folder, tmp_path):
    log = tmp_path / "log.txt"
    process = start(["serve", str(folder), "--port", "0", "--threads", "1"], log)
    deadline = time.monotonic() + 60
    while "answers at" not in (said := log.read_text() if log.exists() else ""):
        assert process.is_alive() and time.monotonic() < deadline, said
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=60)
    assert (process.exitcode, log.read_text().splitlines()[1:]) == (0, ["stopped"])
