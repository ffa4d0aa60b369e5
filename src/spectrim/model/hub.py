"""Models of the Hugging Face hub → the folder that the hub's own cache keeps them in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from spectrim.errors import SpectrimError, did_you_mean
from spectrim.model.conversion import BESIDE, first_line
from spectrim.model.tensor_files import INDEX, SINGLE, no_weights, shards_of

DEMO = "demo"  # the name of the model that comes with the installation
_WEIGHTS = (SINGLE, INDEX, "model-*-of-*.safetensors")


def fetch(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """Return the local folder of a model, downloaded where its files are not there already.

    Raises SpectrimError if there is no such model or revision, if its licence has not been
    accepted, if it is not in the cache and the hub cannot be reached, or if all its weights are
    pickles.
    """
    patterns = ["config.json", *BESIDE, *_WEIGHTS, *(["*.py"] if trust_remote_code else [])]
    folder = _download(name, revision, patterns)
    if not any((folder / file).exists() for file in (SINGLE, INDEX)):
        raise no_weights(f"'{name}'", _listed(name, revision))
    if not (folder / SINGLE).exists():
        named = sorted(set(shards_of(folder / INDEX).values()))
        if not all((folder / shard).exists() for shard in named):  # of names that none has by rule
            folder = _download(name, revision, [*patterns, *named])
    return folder


def _download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise SpectrimError(
            f"'{name}' is gated; accept its licence on https://huggingface.co/{name} and log in "
            "with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise SpectrimError(
            f"there is no model '{name}'; expected 'demo', a folder, a .gguf file or the name of "
            f"a model on huggingface.co{did_you_mean(name, [DEMO])}"
        ) from error
    except RevisionNotFoundError as error:
        raise SpectrimError(
            f"'{name}' has no revision '{revision}'; https://huggingface.co/{name} lists them"
        ) from error
    except LocalEntryNotFoundError as error:
        raise SpectrimError(
            f"there is no folder or file '{name}', no wholly downloaded model of that name, and "
            "huggingface.co cannot be reached; connect, or give a folder, or 'demo'"
            + did_you_mean(name, [DEMO])
        ) from error
    except Exception as error:  # many libraries take part in a download
        raise SpectrimError(
            f"'{name}' could not be fetched ({first_line(error)}); try again"
        ) from error


def _listed(name: str, revision: str | None) -> list[str]:
    try:
        return list_repo_files(name, revision=revision)
    except Exception:  # it only makes the error that follows more exact
        return []
