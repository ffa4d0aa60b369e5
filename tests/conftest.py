"""What all tests share: checked shapes, one thread for tiny matrices, no network, the texts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import iter_modules

import pytest
from jaxtyping import install_import_hook

# Tests say the same with and without a network; huggingface_hub reads this when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent

# Every annotation is checked at every call, shapes included, in what is imported from here on; so
# nothing of spectrim may be imported above. The metrics are let off: their tests put a few lines in
# the place of a model.
assert not any(name.partition(".")[0] == "spectrim" for name in sys.modules)
PARTS = (info.name for info in iter_modules([str(ROOT / "src" / "spectrim")]))
CHECKED = [f"spectrim.{name}" for name in PARTS if name != "metrics"]
install_import_hook(CHECKED, "type_checks.checked")


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


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run on one thread, flow tests apart: tiny matrices were 7 times slower by torch's default."""
    torch = sys.modules.get("torch")
    if torch is None or "flow" in request.path.parts:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
