"""The text that ships with Spectrim: half a megabyte of mixed, freely licensed text.

Prose, explanations, code in seven languages, questions and answers, and a little in six other
human languages; SOURCES.md beside this file lists sources and licences. Passages of all sources
follow each other in turn, so each stretch of the text is a mix of the same kind.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

FILE = Path(__file__).with_name("shipped.jsonl.gz")


def passages() -> list[str]:
    """Return the passages, about 4,000 characters each, in the order that mixes their sources."""
    lines = gzip.decompress(FILE.read_bytes()).decode("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def digest() -> str:
    """Return a hash of the text: another one after an update that changed it."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()
