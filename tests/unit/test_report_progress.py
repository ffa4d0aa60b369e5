"""Progress outside a terminal: plain lines, few of them, each with how much is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from spectrim.report import progress

Say = Callable[[int, int, str], None]


class Clock:
    """Stands for the time: it goes on where a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "monotonic", made)
    return made


@pytest.fixture
def say(clock: Clock) -> Iterator[Say]:
    with progress.shown() as made:
        yield made


def test_a_line_has_count_total_and_what_is_left(
    clock: Clock, say: Say, capsys: pytest.CaptureFixture[str]
) -> None:
    for done in range(1, 31):  # a block every six seconds
        say(done, 30, "decomposing")
        clock.now += 6
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["decomposing 1/30", "decomposing 3/30, 2:42 left",
                         "decomposing 5/30, 2:30 left"]  # fmt: skip
    assert lines[-1] == "decomposing 30/30, took 2:54"
    assert len(lines) == 1 + 14 + 1


def test_each_piece_of_work_speaks_every_ten_seconds_at_most(
    clock: Clock, say: Say, capsys: pytest.CaptureFixture[str]
) -> None:
    for done in range(1001):  # two of them, taking turns
        say(done, 1000, "dense")
        say(done, 1000, "small")
        clock.now += 0.1
    said = capsys.readouterr()
    for what in ("dense", "small"):
        own = [line for line in said.err.splitlines() if line.startswith(what)]
        assert len(own) == 100 / 10 + 1 and own[-1] == f"{what} 1000/1000, took 1:40"
    assert said.out == "" and "\r" not in said.err and "\x1b" not in said.err


def test_work_that_takes_hours_says_so(
    clock: Clock, say: Say, capsys: pytest.CaptureFixture[str]
) -> None:
    say(0, 4, "sampling")
    clock.now += 3600
    say(1, 4, "sampling")
    assert capsys.readouterr().err.splitlines()[1] == "sampling 1/4, 3:00:00 left"


def test_work_begun_anew_is_estimated_from_its_own_start(
    clock: Clock, say: Say, capsys: pytest.CaptureFixture[str]
) -> None:
    for done in (0, 2, 0, 1):
        say(done, 2, "sweep")
        clock.now += 20
    assert capsys.readouterr().err.splitlines() == [
        "sweep 0/2", "sweep 2/2, took 0:20", "sweep 0/2", "sweep 1/2, 0:20 left",
    ]  # fmt: skip


def test_work_of_unknown_length_is_counted(
    clock: Clock, say: Say, capsys: pytest.CaptureFixture[str]
) -> None:
    for done in range(1, 8):
        say(done, 0, "measuring choices")
        clock.now += 4
    assert capsys.readouterr().err.splitlines() == [
        "measuring choices 1", "measuring choices 4", "measuring choices 7",
    ]  # fmt: skip


def test_what_is_told_twice_ends_once(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        say(5, 5, "reading")
    assert capsys.readouterr().err == "reading 5/5\n"


def test_a_log_that_asks_for_colours_is_still_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.shown() as say:
        say(1, 2, "cutting")
    assert capsys.readouterr().err == "cutting 1/2\n"
