"""A model in another form: for llama.cpp, for ONNX Runtime, or for transformers alone."""

from __future__ import annotations

from pathlib import Path

from spectrim.errors import SpectrimError
from spectrim.exporters import exporters
from spectrim.model import sources
from spectrim.outputs.folder import output_file, output_folder
from spectrim.outputs.manifest import is_export
from spectrim.outputs.refusals import refuse_file, refuse_output
from spectrim.progress import Progress

VERB = "export"


def export(
    name: str,
    to: str,
    output: Path,
    *,
    cache: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Write a model in another form, whole or not at all, and return what a user should know of it.

    Args:
        name: of a model, as everywhere: a folder of ours or of others, 'demo', a hub name.
        to: the form, one of `spectrim list exporters`.
        output: the file or folder to write, as the form is one or the other.
        cache: kept between runs; by default as in sources.default_cache.
        trust_remote_code: whether Python code that comes with the model may run.
        progress: called as ``progress(done, total, what)``.

    Raises:
        SpectrimError: anything that the user can put right; nothing is left behind then.
    """
    exporters.check(to)
    cache = cache or sources.default_cache()
    single = exporters.constant(to, "WRITES") == "file"
    refuse(name, to, output, cache)
    make = exporters.get(to)
    source = sources.resolve(name, cache, trust_remote_code=trust_remote_code)
    with output_file(output) if single else output_folder(output, VERB) as target:
        told: list[str] = make(source.folder, target, progress)
    return told


def refuse(name: str, to: str, output: Path, cache: Path) -> None:
    """Raise SpectrimError where the output must not go, before anything is computed."""
    model = sources.local(name)
    if exporters.constant(to, "WRITES") == "file":
        refuse_file(output, is_export)
        if model is not None and output.resolve() == model.resolve():
            raise SpectrimError(f"{output} is the model that is read; name another output")
    else:
        refuse_output(output, VERB, cache, model)
