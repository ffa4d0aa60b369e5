"""What can go wrong before a model is loaded: one line, exit 2, nothing left behind, no torch."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import spectrim
from spectrim.cli import main
from spectrim.errors import SpectrimError
from spectrim.formats import low_rank_formats


def named(kind: str) -> str:
    """Return what a message lists of a kind: the files of its folder."""
    stems = [path.stem for path in (Path(spectrim.__file__).parent / kind).glob("[!_]*.py")]
    return f"({kind}: {', '.join(sorted(stem.removesuffix('_') for stem in stems))})"


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Return (exit code, standard output, standard error) of a command line."""
    with pytest.raises(SystemExit) as leaving:
        main.main(arguments)
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, captured.err


def run_alone(*arguments: str, folder: Path, then: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own, which fails where it has loaded torch."""
    code = (
        "import atexit, sys\n"
        "from spectrim.cli.main import main\n"
        "atexit.register(lambda: print('torch loaded:', 'torch' in sys.modules))\n"
        "main(sys.argv[1:])"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


WRONG = [
    (["--keep", "0"], "keep '0' is out of range; keep more than 0% and at most 100%"),
    (["--keep", "300%"], "keep '300%' is out of range; keep more than 0% and at most 100%"),
    (["--keep", "0.6"], "cannot read keep '0.6'; write the part that stays with its unit, "
     "such as '80% of linear' or '60% of bytes'"),
    (["--size", "25"], "cannot read size '25'; write the part that stays with its unit, "
     "such as '25%' or '25% of linear bytes', or bytes, such as '600MB' or '1.5GiB'"),
    (["--method", "whitened_svdd"],
     f"no method named 'whitened_svdd'; did you mean 'whitened_svd'? {named('methods')}"),
    (["--allocator", "globe"],
     f"no allocator named 'globe'; did you mean 'global'? {named('allocators')}"),
    (["--format", "pivotted"],
     "no format named 'pivotted'; did you mean 'pivoted'? "
     f"(formats: {', '.join(low_rank_formats())})"),
    (["--tokens", "48"],
     "'48' is no amount of tokens; write sequences x tokens in each, such as 48x1024"),
    (["--protect", "("],
     "'(' is no regular expression (missing ), unterminated subpattern at position 0); "
     "write one, such as 'down' or 'block 0$'"),
    (["--seed", "-1"], "seed of the recipe cannot be -1; it should be greater than or equal to 0"),
    (["--recipe", "none.yaml"], "there is no recipe file 'none.yaml'; check the path"),
    (["--plan", "none.json"], "there is no plan file 'none.json'; check the path"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), WRONG, ids=lambda value: str(value)[:30])
def test_what_is_wrong_is_said_in_one_line(capsys, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "shrink", "demo", *arguments, "-o", "small")
    assert code == 2
    assert err == f"spectrim: error: {expected}\n"
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_none_of_that_loads_torch(tmp_path):
    (tmp_path / "file").write_text("")
    for arguments in (
        ["shrink", "demo", "--keep", "0", "-o", "small"],
        ["shrink", "demo", "--method", "whitened_svdd", "-o", "small"],
        ["shrink", "demo", "-o", "file/small"],
        ["list"],
        ["--help"],
    ):
        done = run_alone(*arguments, folder=tmp_path)
        assert done.stdout.endswith("torch loaded: False\n"), (arguments, done.stderr)


def test_an_unknown_key_of_a_recipe_is_named_with_its_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("model: demo\nkep: 60%\n")
    code, _, err = run(capsys, "shrink", "--recipe", "recipe.yaml", "-o", "small")
    assert code == 2
    assert err == (
        "spectrim: error: recipe.yaml: unknown key 'kep' in the recipe; did you mean 'keep'? "
        "(keys: model, keep, calibration, stages, seed, trust_remote_code)\n"
    )


def test_a_budget_that_no_stage_spends_is_refused(capsys, tmp_path):
    file = tmp_path / "rounded.yaml"
    file.write_text("model: demo\nstages: [quantize]\n")
    told = run(capsys, "shrink", "--recipe", str(file), "--keep", "30%", "-o", str(tmp_path / "x"))
    assert told[::2] == (
        2,
        "spectrim: error: the recipe has no stage factorize; leave out --keep, or add the stage\n",
    )


def test_a_model_has_to_be_named(capsys):
    code, _, err = run(capsys, "shrink", "-o", "small")
    assert code == 2
    assert err == (
        "spectrim: error: no model is named; name one, such as 'demo', or a --recipe that does\n"
    )


def test_a_plan_leaves_nothing_to_say_about_the_budget(capsys, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    code, _, err = run(
        capsys, "shrink", "demo", "--plan", str(plan), "--keep", "60%", "-o", str(tmp_path / "x")
    )
    assert (code, err) == (2, "spectrim: error: --plan already says the keep; leave out --keep\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["shrink", "demo", "-o"],
        ["evaluate", "demo", "--json"],
        ["report", "folder", "-o"],
    ],
    ids=lambda value: value[0],
)
def test_an_output_that_cannot_be_written_is_refused_first(capsys, tmp_path, arguments):
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "small"
    code, _, err = run(capsys, *arguments, str(target))
    assert code == 2
    assert err == (
        f"spectrim: error: cannot write '{target}'; Not a directory: '{tmp_path / 'file'}'\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused_first(capsys, tmp_path):
    tmp_path.chmod(0o500)
    code, _, err = run(capsys, "shrink", "demo", "-o", str(tmp_path / "small"))
    tmp_path.chmod(0o700)
    assert code == 2
    assert "Permission denied" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["shrink", "demo", "--kep", "60%", "-o", "small"], "--keep"),
        (["shrnk", "demo"], "shrink"),
        (["shrink", "demo"], "--output"),
        (["shrink", "demo", "--refine", "maybe", "-o", "small"], "auto"),
        (["list", "method"], "methods"),
    ],
    ids=str,
)
def test_unknown_words_of_the_command_line_suggest_known_ones(capsys, arguments, told):
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("spectrim: error: ") and told in err
    assert err.endswith(f"; see 'spectrim {arguments[0]} --help'\n") or arguments[0] == "shrnk"


def test_the_version_is_told(capsys):
    assert run(capsys, "--version") == (0, f"spectrim {spectrim.__version__}\n", "")


def test_no_word_at_all_shows_the_help(capsys):
    code, out, err = run(capsys)
    assert (code, err) == (2, "") and "shrink" in out and "--version" in out


# what the outer frame does with errors from within


def failing(monkeypatch, error: BaseException) -> None:
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr("spectrim.registry.Registry.names", fail)


def test_an_error_of_several_lines_is_told_in_one(capsys, monkeypatch):
    failing(monkeypatch, SpectrimError("first\n  second"))
    assert run(capsys, "list", "methods")[::2] == (2, "spectrim: error: first second\n")


def test_an_interrupt_says_how_to_go_on(capsys, monkeypatch):
    failing(monkeypatch, KeyboardInterrupt())
    code, _, err = run(capsys, "list", "methods")
    assert (code, err) == (130, "interrupted; run the same command again to continue\n")


FULL = "the disk is full; free some space and run the same command again"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "x"),
        RuntimeError("IoError(Os { code: 28, message: 'No space left on device' })"),
    ],
    ids=["OSError", "wrapped by a library"],
)
def test_a_full_disk_is_told_in_one_line(capsys, monkeypatch, error):
    failing(monkeypatch, error)
    assert run(capsys, "list", "methods")[::2] == (2, f"spectrim: error: {FULL}\n")


NO_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                 "allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"),
]  # fmt: skip


@pytest.mark.parametrize("error", NO_MEMORY, ids=["Python", "torch", "torch, Windows", "mapping"])
def test_too_little_memory_is_told_in_one_line(capsys, monkeypatch, error):
    failing(monkeypatch, error)
    told = "there is too little memory; close other programs, or read fewer tokens"
    assert run(capsys, "list", "methods")[::2] == (2, f"spectrim: error: {told}\n")


def test_a_file_that_cannot_be_used_is_told_in_one_line(capsys, monkeypatch):
    failing(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "secret"))
    code, _, err = run(capsys, "list", "methods")
    assert (code, err) == (2, "spectrim: error: cannot use 'secret'; Permission denied\n")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    failing(monkeypatch, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError, match="ours"):
        main.main(["list", "methods"])


def test_a_real_interrupt_ends_with_130(tmp_path):
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells may ignore it
        "from spectrim import registry\n"
        "from spectrim.cli import main\n"
        "def wait(self):\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(30)\n"
        "registry.Registry.names = wait\n"
        "main.main(['list', 'methods'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 130
    assert done.stderr.endswith("interrupted; run the same command again to continue\n")
    assert "Traceback" not in done.stderr
    assert signal.SIGINT == 2
