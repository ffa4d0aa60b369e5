"""A tiny model behind a real server on a free port of the loopback, as its clients meet it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import uvicorn

from spectrim.serve import Limits
from spectrim.serve.app import application
from spectrim.serve.served import Served, opened
from spectrim.serve.server import bound
from tiny_folders import change_config, tiny_folder

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ m.content }} w9 {% endfor %}{% if add_generation_prompt %}w10{% endif %}"
)


def served_folder(folder: Path, context: int = 4096) -> Path:
    """Write a tiny model with a chat template and room for long answers."""
    tiny_folder(folder)
    change_config(folder, max_position_embeddings=context)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@dataclass(frozen=True)
class Place:
    """Where a server is."""

    served: Served
    url: str

    def client(self, key: str = "none") -> openai.OpenAI:
        """Return OpenAI's client, which does not try again by itself."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=300)

    def metric(self, name: str) -> float:
        """Return a number of /metrics that has no labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


@contextmanager
def serving(path: Path, limits: Limits, key: str | None = None) -> Iterator[Place]:
    """Serve a model until the block ends."""
    served, listening = opened(path, limits, threads=1), bound("127.0.0.1", 0)
    config = uvicorn.Config(application(served, key), log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Place(served, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join()
        served.close()
        listening.close()
