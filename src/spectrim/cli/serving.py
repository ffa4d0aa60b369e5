"""The verbs of the command line that run models: serve, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrim.cli import arguments as given
from spectrim.cli.help_texts import argument, option
from spectrim.cli.measuring import Cache

app = typer.Typer()

Threads = Annotated[int | None, option("threads", default="all cores")]


@app.command()
def serve(
    model: Annotated[str, argument("served")],
    host: Annotated[str, option("host", default=True)] = "127.0.0.1",
    port: Annotated[int, option("port", default=True)] = 8000,
    api_key: Annotated[str | None, option("api-key", "--api-key", default="none is asked")] = None,
    context: Annotated[int | None, option("context", default="the model's, at most 4096")] = None,
    slots: Annotated[int, option("slots", default=True)] = 16,
    queue: Annotated[int, option("queue", default=True)] = 64,
    threads: Threads = None,
    cache: Cache = None,
) -> None:
    """Serve a model on OpenAI's API: chat, completions, embeddings; streams.

    For example:

    spectrim serve small/ --port 8000

    spectrim serve small.gguf --host 0.0.0.0 --api-key SECRET
    """
    from spectrim.serve import Limits
    from spectrim.verbs.serve import Address
    from spectrim.verbs.serve import serve as run

    limits = Limits(slots=slots, queue=queue, context=context)
    run(model, Address(host, port, given.api_key(api_key)), limits,
        threads=threads, cache=cache, said=typer.echo)  # fmt: skip


@app.command()
def bench(
    models: Annotated[list[str], argument("benched")],
    against: Annotated[str | None, option("bench-against", default="none")] = None,
    prompt: Annotated[int, option("prompt", default=True)] = 256,
    new: Annotated[int, option("new", default=True)] = 32,
    rounds: Annotated[int, option("rounds", default=True)] = 5,
    threads: Threads = None,
    json_path: Annotated[Path | None, option("bench-json", "--json")] = None,
    cache: Cache = None,
) -> None:
    """Measure how fast models run, each in its own runtime, taking turns.

    Example: spectrim bench small/ small.gguf small-onnx/ --against demo
    """
    if json_path is not None:
        given.prove_writable(json_path)
    from spectrim.report import bench as table
    from spectrim.report.progress import shown
    from spectrim.verbs.bench import Work
    from spectrim.verbs.bench import bench as run

    work = Work(prompt=prompt, new=new, rounds=rounds)
    with shown() as progress:
        found = run(models, against, work, threads=threads, cache=cache,
                    json_path=json_path, progress=progress)  # fmt: skip
    table.show(found)
