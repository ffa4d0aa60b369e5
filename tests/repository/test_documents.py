"""What the documents promise: commands, targets, links and plug-ins that exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from spectrim.cli import main
from spectrim.registry import Registry


def fenced(file: Path) -> list[str]:
    """Return the fenced blocks of a Markdown file, without the fences."""
    return re.findall(r"^```\w*\n(.*?)^```", file.read_text(encoding="utf-8"), re.M | re.S)


def documents(root: Path) -> list[Path]:
    """Return the documents that people read, the design notes of others apart."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


def commands(file: Path) -> list[list[str]]:
    """Return the `spectrim …` lines of a document's fenced blocks, as words."""
    text = "\n".join(fenced(file)).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("spectrim ")]


def fault(words: list[str]) -> str | None:
    """Return why the command line would refuse these words, or None."""
    group = typer.main.get_command(main.app)
    if len(words) == 1 or words[1].startswith("-"):
        return None if words[1:] in ([], ["--help"]) else f"no option {words[1]}"
    if words[1] not in group.commands:
        return f"no verb {words[1]}"
    verb = group.commands[words[1]]
    known = {option for parameter in verb.params for option in parameter.opts}
    known |= {option for parameter in verb.params for option in parameter.secondary_opts}
    unknown = [
        word for word in words[2:] if word.startswith("-") and word not in {*known, "--help"}
    ]
    if unknown:
        return f"no option {unknown[0]} of {words[1]}"
    if "--help" not in words:
        try:
            verb.make_context(words[1], list(words[2:]))
        except Exception as error:
            return f"{words[1]}: {error}"
    return None


def test_the_check_of_commands_can_fail(tmp_path):
    file = tmp_path / "x.md"
    file.write_text(
        "```bash\n$ spectrim shrink demo -o small/  # ok\nspectrim shrnk\n"
        "spectrim shrink demo --kep 3 \\\n  -o x\nspectrim shrink demo\nmake demo\n```\n"
        "`spectrim inline` is not run\n"
    )
    found = [fault(words) for words in commands(file)]
    assert found[:3] == [None, "no verb shrnk", "no option --kep of shrink"]
    assert found[3].startswith("shrink: ")
    assert len(found) == 4


def test_every_command_in_the_documents_is_accepted(root):
    refused = {
        f"{file.name}: {shlex.join(words)}": reason
        for file in documents(root)
        for words in commands(file)
        if (reason := fault(words))
    }
    assert refused == {}


def test_the_command_line_document_shows_every_verb(root):
    shown = {words[1] for words in commands(root / "docs" / "command-line.md")}
    assert shown == set(typer.main.get_command(main.app).commands)


def test_the_readme_is_one_screen_of_five_hundred_words(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 500


def test_the_readme_leads_with_a_size_and_links_every_document(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    first = commands(root / "README.md")[0]
    assert first[1] == "shrink" and "--size" in first
    named = set(re.findall(r"\]\((docs/[\w-]+\.md)", text))
    assert named == {
        f"docs/{file.name}"
        for file in (root / "docs").glob("*.md")
        if file.name != "index.md"  # the front page of the site, as this is of the repository
    }


def test_commands_in_tables_and_sentences_of_the_readme_are_accepted_too(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    inline = [shlex.split(found) for found in re.findall(r"`(spectrim [^`]+)`", text)]
    assert len(inline) >= 3 and [fault(words) for words in inline] == [None] * len(inline)


def test_every_make_target_in_the_documents_exists(root):
    targets = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.M))
    for file in documents(root):
        lines = "\n".join(fenced(file)).splitlines()
        named = {line.split()[1] for line in lines if re.match(r"make [a-z]+", line)}
        assert named <= targets, file.name


def test_links_between_the_documents_lead_somewhere(root):
    dead = [
        f"{file.name}: {link}"
        for file in documents(root)
        for link in re.findall(r"\]\(([^)#\s]+)", file.read_text(encoding="utf-8"))
        if "://" not in link and not (file.parent / link).exists()
    ]
    assert dead == []


@pytest.mark.parametrize("kind", ["methods", "allocators", "stages", "formats"])
def test_the_mathematics_names_every_plug_in(kind: str, root: Path) -> None:
    text = (root / "docs" / "methods.md").read_text(encoding="utf-8")
    names = Registry(kind, f"spectrim.{kind}").names()
    assert names and not [name for name in names if f"`{name}`" not in text]
