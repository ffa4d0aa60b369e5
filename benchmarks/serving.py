"""Does the server hold: many streams at once, clients that leave, and a thousand requests.

    python benchmarks/serving.py demo -o run/ [--clients 64] [--seconds 120] [--threads 2]

`spectrim serve` runs in a process of its own; OpenAI's client asks it. Every stream is one greedy
answer to a prompt that no other has, by the model in fp32, in which a batch rounds like one
sequence. That none was mixed up is proven afterwards: the model alone reads each prompt with the
tokens that the server told, and each of them has to be the likeliest one there. Then every answer
is held against every other prompt, to show that each of these swaps would have been found. Then
clients leave in the midst, and a thousand short requests show whether memory grows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import openai
import psutil
import torch
from measuring import publish
from mixed_answers import Stream, mixed

from spectrim.model import sources

TOKENS = 48  # of each answer
REQUESTS, AT_ONCE = 1000, 16
LEAVERS = 10
SUBJECTS = (
    "volcanoes bread whales chess Rome bees glaciers jazz tea bicycles Mars oak diamonds soccer "
    "pyramids coffee dolphins algebra Paris cheese lightning piano deserts vaccines castles rice "
    "owls gravity Tokyo honey earthquakes violins rivers penguins silk tomatoes lions atoms "
    "Egypt salt rainbows opera forests wolves glass potatoes horses poetry Venus gold tornadoes "
    "drums oceans elephants paper wine cats magnets India sugar eclipses dancing caves sharks"
)


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: psutil.Process
    url: str
    plain: httpx.Client

    def client(self) -> openai.AsyncOpenAI:
        """Return OpenAI's client, which does not try again by itself."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def metric(self, name: str) -> float:
        """Return a number of /metrics that has no labels."""
        lines = self.plain.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    def memory(self) -> int:
        """Return the bytes that the server has in memory."""
        return int(self.process.memory_info().rss)


def main() -> None:
    """Measure, print and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.output.mkdir(parents=True, exist_ok=True)
    folder = asked.output / "fp32"
    if not folder.exists():
        precise(asked.model, folder)
    with serving(folder, asked.clients, asked.threads) as server:
        name = server.plain.get("/v1/models").json()["data"][0]["id"]
        row, told = kept(
            asked.output / "crowd.json",
            lambda: answered(server, name, asked.clients, asked.seconds),
        )
        freed = kept(asked.output / "leave.json", lambda: asyncio.run(leave(server, name)))
        memory = kept(asked.output / "many.json", lambda: asyncio.run(many(server, name)))
    row |= {"slot_freed": max(freed), "requests": REQUESTS, "memory_mb": memory}
    row |= mixed(folder, [Stream(**one) for one in told])
    print(publish(asked.output, "serving", [row], model=f"{asked.model}, fp32",
                  text=f"{TOKENS} greedy tokens to prompts of about 10"))  # fmt: skip


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """Return what a part of the work gave, done where an earlier run did not get so far."""
    if not file.exists():
        file.write_text(json.dumps(make()))
        print(f"{file.stem} done", flush=True)
    return json.loads(file.read_text())


def answered(
    server: Server, model: str, clients: int, seconds: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the row on many clients at once, and all their answers."""
    start = time.perf_counter()
    streams, dropped = asyncio.run(crowd(server, model, clients, seconds))
    taken = time.perf_counter() - start  # the last answers end later than was asked
    row = {
        "table": "serving", "clients": clients, "seconds": seconds,
        "answers": len(streams), "dropped": dropped,
        "tokens_per_second": sum(one.tokens for one in streams) / taken,
        "first_token": median(one.first for one in streams),
    }  # fmt: skip
    return row, [asdict(one) for one in streams]


def precise(name: str, folder: Path) -> None:
    """Write the model in fp32: greedy tokens then do not depend on what else is in a batch."""
    model, tokenizer = sources.load(name, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def serving(model: Path, clients: int, threads: int) -> Iterator[Server]:
    """Run a server with a slot for every client."""
    command = [sys.executable, "-m", "spectrim", "serve", str(model), "--port", "0"]
    options = ["--slots", str(clients), "--threads", str(threads), "--context", "1024"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://\S+(?=/v1)", said)
        if not found:
            raise SystemExit(f"the server did not start: {said}")
        with httpx.Client(base_url=found[0], timeout=60) as plain:
            yield Server(psutil.Process(process.pid), found[0], plain)
    finally:
        process.terminate()
        process.wait()


async def crowd(
    server: Server, model: str, clients: int, seconds: float
) -> tuple[list[Stream], int]:
    """Have clients stream one answer after the other; return the answers and how many failed."""
    until = time.perf_counter() + seconds
    streams: list[Stream] = []
    dropped = 0

    async def one(number: int) -> None:
        nonlocal dropped
        async with server.client() as client:
            turn = 0
            while time.perf_counter() < until:
                try:
                    streams.append(await stream(client, model, prompt_of(number, turn)))
                except openai.APIError as error:
                    print(f"dropped: {error}")
                    dropped += 1
                turn += 1

    await asyncio.gather(*(one(number) for number in range(clients)))
    return streams, dropped


def prompt_of(client: int, turn: int) -> str:
    """Return a prompt: no two clients have the same pair of subjects, nor a client in two turns."""
    subjects = SUBJECTS.split()
    one, other = client % len(subjects), (client + turn + 1) % len(subjects)
    return f"A story of {subjects[one]} and {subjects[other]}:"


async def stream(client: openai.AsyncOpenAI, model: str, prompt: str) -> Stream:
    """Stream one greedy answer."""
    start, first, text, tokens = time.perf_counter(), 0.0, "", 0
    pieces: list[str] = []
    async for chunk in await client.completions.create(
        model=model, prompt=prompt, max_tokens=TOKENS, temperature=0, stream=True, logprobs=0,
        stream_options={"include_usage": True},
    ):  # fmt: skip
        first = first or time.perf_counter() - start
        if chunk.choices:
            text += chunk.choices[0].text
            if told := chunk.choices[0].logprobs:
                pieces += told.tokens or []
        elif chunk.usage:
            tokens = chunk.usage.completion_tokens
    if not tokens:
        raise openai.APIError(
            "a stream ended without its usage", httpx.Request("POST", "/"), body=None
        )
    return Stream(prompt, text, pieces, first, time.perf_counter() - start, tokens)


async def leave(server: Server, model: str) -> list[float]:
    """Have clients leave in the midst of an answer; return the seconds until no slot is taken."""
    found = []
    async with server.client() as client:
        for _ in range(LEAVERS):
            answer = await client.completions.create(
                model=model, prompt="Once upon a time", max_tokens=900, temperature=0, stream=True
            )
            await anext(aiter(answer))
            server.metric("spectrim_active")  # so that its connection is there
            await answer.close()
            start = time.perf_counter()
            while server.metric("spectrim_active"):
                await asyncio.sleep(0.01)
            found.append(time.perf_counter() - start)
    return found


async def many(server: Server, model: str) -> list[float]:
    """Ask a thousand times; return the server's memory in MB at the start and at each quarter."""
    slots = asyncio.Semaphore(AT_ONCE)
    found = [server.memory() / 1e6]
    async with server.client() as client:

        async def one(number: int) -> None:
            async with slots:
                await client.completions.create(
                    model=model, prompt=f"The number {number} is", max_tokens=2, seed=number
                )

        for quarter in range(4):
            numbers = range(quarter * REQUESTS // 4, (quarter + 1) * REQUESTS // 4)
            await asyncio.gather(*(one(number) for number in numbers))
            found.append(server.memory() / 1e6)
    return found


if __name__ == "__main__":
    main()
