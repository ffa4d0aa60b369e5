"""What a release promises: one version everywhere, and a workflow that runs the tests."""

import os
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import spectrim

HEADING = re.compile(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)$", re.M)


def test_the_changelog_begins_with_this_version_and_every_version_has_a_date(root: Path) -> None:
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = HEADING.findall(text)
    assert versions[0][0] == spectrim.__version__
    headings = re.findall(r"^## (.*)$", text, re.M)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert headings[1:] == released[-len(headings) + 1 :], "what is not released yet is on top"
    assert len(versions) == len(released), "a heading without version and date"
    days = [date.fromisoformat(day) for _, day in versions]
    assert days == sorted(days, reverse=True), "the newest is on top"


def test_the_citation_names_the_newest_version_and_its_day(root: Path) -> None:
    said = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    version, day = HEADING.findall((root / "CHANGELOG.md").read_text(encoding="utf-8"))[0]
    assert (said["version"], str(said["date-released"])) == (version, day)


def workflow(root: Path) -> dict:
    return yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))


def test_the_workflow_runs_what_people_run_on_every_python_it_names(root: Path) -> None:
    job = workflow(root)["jobs"]["test"]
    steps = job["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    (python,) = (step["with"] for step in steps if "setup-python" in step.get("uses", ""))
    assert python["python-version"] == "${{ matrix.python }}" and python["cache"] == "pip"
    told = (root / "pyproject.toml").read_text(encoding="utf-8")
    oldest = SpecifierSet(re.search(r'^requires-python = "(.+)"$', told, re.M)[1])
    named = job["strategy"]["matrix"]["python"]
    assert named == ["3.11", "3.13"] and all(oldest.contains(version) for version in named)
    assert not oldest.contains("3.10"), "the oldest Python is tested"


def test_continuous_integration_runs_the_tests_as_the_readme_says(root: Path) -> None:
    last = (root / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1].split()
    assert last[:2] == ["exec", "make"] and {"check", "test"} <= set(last[2:])
    assert re.search(r"\bmake test\b", (root / "README.md").read_text(encoding="utf-8"))


def dry(folder: Path, *arguments: str) -> str:
    """Return the commands that make would run in a folder."""
    outer = ("PYTHON", "MAKEFLAGS", "MFLAGS")  # of a make that runs these tests
    done = subprocess.run(
        ["make", "--dry-run", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in outer},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_naming_another_python_makes_the_environment_anew(root: Path, tmp_path: Path) -> None:
    other, same = tmp_path / "python3.99", tmp_path / "python"
    other.write_text("#!/bin/sh\necho Python 3.99.0\n")
    same.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in (other, same):
        program.chmod(0o755)
    shutil.copy(root / "Makefile", tmp_path)
    for file in ("pyproject.toml", "constraints.txt", ".venv/.installed"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / ".venv" / "bin").mkdir()
    (tmp_path / ".venv" / "bin" / "python").symlink_to(same)
    assert f"{other} -m venv --clear .venv" in dry(tmp_path, f"PYTHON={other}", "test")
    assert "venv --clear" not in dry(tmp_path, f"PYTHON={same}", "test")
    assert "-m venv" not in dry(tmp_path, f"PYTHON={same}", "test")
