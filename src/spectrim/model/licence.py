"""The licence that a model folder's own card names."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard


def licence_of(base: Path | None) -> str | None:
    """Return the licence in the metadata of a model folder's card; None where it says none."""
    path = None if base is None else base / "README.md"
    if path is None or not path.is_file():
        return None
    try:
        found = ModelCard.load(path, ignore_metadata_errors=True).data.get("license")
    except ValueError:  # metadata that is no mapping; the dense model's card is not ours to mend
        return None
    return found if isinstance(found, str) else None
