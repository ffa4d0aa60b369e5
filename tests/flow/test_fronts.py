"""Several sizes of one model, one after the other: gone on with, and shown on one page."""

from __future__ import annotations

import pytest

from spectrim.errors import SpectrimError
from spectrim.healing.minutes import Learning
from spectrim.metrics.size import bytes_of_weights
from spectrim.model.runtime import Size
from spectrim.model.weights import quiet
from spectrim.recipe.recipe import Keep
from spectrim.verbs import auto
from spectrim.verbs.search import Front, search
from tiny_runs import Made, make, plan_of, without_stages


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a tiny llama, its cache shared by all runs."""
    return make("llama", tmp_path_factory.mktemp("fronts"))


def test_a_front_is_gone_on_with_and_ends_in_one_page(
    plain: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning = Learning({"steps": 4}, [{"distil": {"steps": 30}}])
    monkeypatch.setattr(auto, "learning_within", lambda job, minutes: learning)
    front = plain.folder / "front"

    def searched(minutes: float | None) -> Front:
        with quiet():
            return search(
                without_stages(plain), [Keep.parse("60%"), Keep.parse("45%")], front,
                minutes=minutes, cache=plain.folder / "cache",
                progress=lambda done, total, what: None,
            )  # fmt: skip

    first = searched(1e-9)
    assert not first.made and [str(size) for size in first.left] == ["60% of bytes", "45% of bytes"]
    found = searched(10)
    assert [folder.name for folder in found.made] == ["60_of_bytes", "45_of_bytes"]
    sizes = [bytes_of_weights(folder) / bytes_of_weights(plain.source) for folder in found.made]
    assert 0.45 < sizes[0] <= 0.6 and sizes[1] <= 0.45
    for folder in found.made:
        said = plan_of(folder).about["found"]
        assert said["chosen"].count(". ") == 2 and said["healed"][0]["stage"] == "distil"
        assert said["healed"][0]["steps"] <= 30 and said["quantized"]["steps"] == 4
    page = (front / "report.html").read_text(encoding="utf-8")
    assert all(folder.name in page for folder in found.made)
    before = {folder: (folder / "model.safetensors").stat().st_mtime_ns for folder in found.made}
    assert searched(10).made == found.made  # nothing is made twice
    assert {f: (f / "model.safetensors").stat().st_mtime_ns for f in before} == before


def test_sizes_of_a_front_may_be_bytes(plain: Made) -> None:
    found = search(
        without_stages(plain), [Size(bytes=600_000)], plain.folder / "bytes", minutes=1e-9,
        cache=plain.folder / "cache", progress=lambda done, total, what: None,
    )  # fmt: skip
    assert [str(size) for size in found.left] == ["0.6 MB"]


def test_a_front_of_another_model_is_not_taken_for_ones_own(plain: Made) -> None:
    other = without_stages(plain).model_copy(update={"seed": 7})
    with pytest.raises(SpectrimError, match="made with another seed"):
        search(
            other, [Keep.parse("60%")], plain.folder / "front", minutes=None,
            cache=plain.folder / "cache", progress=lambda done, total, what: None,
        )  # fmt: skip
