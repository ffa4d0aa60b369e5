"""A folder with a tiny model and a text in it, the command line run there, and what it leaves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiny_processes
from spectrim.cli import main


@dataclass
class Place:
    """A folder with a model and a text in it, and the command line run there."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def text(self) -> Path:
        return self.folder / "text.txt"

    @property
    def small(self) -> Path:
        return self.folder / "small"

    def run(self, *arguments: str | Path) -> tuple[int, str]:
        """Return exit code and standard error."""
        with pytest.raises(SystemExit) as leaving:
            main.main([str(argument) for argument in arguments])
        return leaving.value.code, self.capsys.readouterr().err

    def run_alone(self, *arguments: str | Path) -> tuple[int, str]:
        """Return the same of a process of its own, with which all files that it has mapped go."""
        log = self.folder / "log"
        process = tiny_processes.start([str(argument) for argument in arguments], log)
        process.join()
        said = log.read_text()
        log.unlink()
        return process.exitcode or 0, said

    def shrink(
        self, *options: str | Path, cache: Path | None = None, alone: bool = False
    ) -> tuple[int, str]:
        """Shrink as asked, options said again taking the place of the usual ones."""
        asked = {
            "--keep": "70% of linear",
            "--calibration": self.text,
            "--tokens": "12x32",
            "--cache": cache or self.folder / "cache",
            "-o": self.small,
        }
        given = dict(zip(options[::2], options[1::2], strict=True))
        if "--plan" in given:
            asked = {name: asked[name] for name in ("--cache", "-o")}
        words = [word for pair in {**asked, **given}.items() for word in pair]
        run = self.run_alone if alone else self.run
        return run("shrink", self.source, "--no-evaluate", *words)

    def refused(self, told: str, *options: str | Path) -> None:
        """Assert that shrinking ends in this one line and leaves no trace."""
        before = sorted(self.folder.iterdir())
        code, err = self.shrink(*options)
        assert_told(code, err, told)
        assert [path for path in sorted(self.folder.iterdir()) if path not in before] in (
            [],
            [self.folder / "cache"],
        )
        assert_clean(self.folder)


def assert_told(code: int, err: str, told: str) -> None:
    """The error is the last line and one line; before it only what was being done."""
    *doing, line = err.splitlines()
    assert code == 2, err
    assert line.startswith("spectrim: error: ") and told in line, err
    assert all(re.search(r" \d+/\d+(, .*)?$", one) for one in doing), err


def assert_clean(folder: Path) -> None:
    """No half-written file or folder, and nothing of this run alone, is left."""
    assert not [path for path in folder.rglob("*") if "partial" in path.name]
    assert not list((folder / "cache" / "work").glob("*"))
