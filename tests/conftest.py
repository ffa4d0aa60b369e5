"""What all tests share: checked shapes, one thread for tiny matrices, no network, the texts."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from pkgutil import iter_modules

import pytest

import type_checks

# Tests say the same with and without a network; huggingface_hub reads this when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent

# Every annotation is checked at every call, shapes included, in what is imported from here on; so
# nothing of spectrim may be imported above. The metrics are let off: their tests put a few lines in
# the place of a model.
assert not any(name.partition(".")[0] == "spectrim" for name in sys.modules)
PARTS = (info.name for info in iter_modules([str(ROOT / "src" / "spectrim")]))
CHECKED = [f"spectrim.{name}" for name in PARTS if name != "metrics"]
type_checks.install(CHECKED)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the repository."""
    return ROOT


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of test texts: $SPECTRIM_DATA, else ../shared/data."""
    folder = Path(os.environ.get("SPECTRIM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test texts in {folder}; set SPECTRIM_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def demo_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the one cache that all tests on the demo model share, so that it is read once."""
    return tmp_path_factory.mktemp("cache")


@cache
def default_threads() -> int:
    """Return how many threads torch takes, a part of them where several workers run the tests."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(1, sys.modules["torch"].get_num_threads() // workers)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep on one worker what shares the demo model, and what shares a file's fixtures."""
    for item in items:
        demo = "demo_cache" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("demo" if demo else item.path.name))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run on one thread, fixtures included: tiny matrices were 7 times slower by torch's default.

    Only the demo model, which has large ones, is let off.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        many, demo = default_threads(), "demo_cache" in item.fixturenames
        torch.set_num_threads(many if demo else 1)
